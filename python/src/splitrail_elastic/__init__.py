"""Elastic roles: an OpenAI-compatible front that decides request by request which engine does what.

Runs inside the serving image, beside Ray and vLLM: Python 3.10 syntax. ``handoff`` shapes requests, ``pool``
knows the engines, ``dispatch`` serves a request; these three need the standard library alone. ``app`` is what
Ray Serve runs.
"""
