"""Bring a model to every node: what belongs to it, where it comes from, and how nodes pass it on.

Standard library only. Modules import this package from Ansible's module_utils; the agent (``agent.py``) is
the same package copied to a node and run there as ``python3 -m splitrail_models.agent JOB``.
"""
