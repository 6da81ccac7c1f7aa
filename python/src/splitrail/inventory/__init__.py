"""Inventories: read as Ansible reads them, and refused before a host is contacted."""
