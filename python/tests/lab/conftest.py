"""What the lab's tests share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def listing() -> dict[str, Any]:
    """What `ansible-inventory --list` prints for a good lab of two hosts."""
    shared = {
        "lab_name": "try",
        "lab_network": "10.66.0.0/24",
        "lab_mounts": [{"source": "images", "target": "/var/lib/images", "writable_on": ["head"]}],
        "ansible_user": "splitrail",
        "ansible_ssh_private_key_file": "{{ inventory_dir }}/../.lab/{{ lab_name }}/id_ed25519",
        "release": "{{ lookup('ansible.builtin.file', 'not-for-the-lab') }}",
    }
    return {
        "_meta": {
            "hostvars": {
                "n1": {**shared, "ansible_host": "10.66.0.11"},
                "n2": {**shared, "ansible_host": "10.66.0.12"},
            }
        },
        "all": {"children": ["ungrouped", "head", "workers"]},
        "head": {"hosts": ["n1"]},
        "workers": {"children": ["decode"]},
        "decode": {"hosts": ["n2"]},
    }
