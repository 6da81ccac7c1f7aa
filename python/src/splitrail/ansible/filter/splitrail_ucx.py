"""Filters for what UCX is told: build it from the rails, and refuse what could hide a fall back to TCP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from splitrail.transport import TransportError, check_engine_env, check_node_env, net_devices


def splitrail_net_devices(identity: dict[str, Any]) -> str:
    """``UCX_NET_DEVICES`` of a node, from what splitrail_fabric_identity returned."""
    try:
        return net_devices(identity["nics"])
    except TransportError as error:
        raise AnsibleFilterError(str(error)) from error


def splitrail_ucx_env(env: dict[str, str], transport: str) -> dict[str, str]:
    """The environment of a node, unless UCX could take another transport than the declared one in it."""
    try:
        check_node_env(env, transport)
    except TransportError as error:
        raise AnsibleFilterError(str(error)) from None
    return env


def splitrail_engine_env(env: dict[str, str], transport: str, where: str) -> dict[str, str]:
    """The environment of engines, unless it undoes what the transport was proven with."""
    try:
        check_engine_env(env, transport, where)
    except TransportError as error:
        raise AnsibleFilterError(str(error)) from None
    return env


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {
            "splitrail_net_devices": splitrail_net_devices,
            "splitrail_ucx_env": splitrail_ucx_env,
            "splitrail_engine_env": splitrail_engine_env,
        }
