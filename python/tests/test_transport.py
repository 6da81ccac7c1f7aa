"""UCX's settings: built from the rails, and refused where TCP could slip in."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from splitrail.ansible.filter.splitrail_ucx import FilterModule

FILTERS = FilterModule().filters()
GOOD = {"UCX_TLS": "rc,sm,self,rocm_copy,rocm_ipc", "UCX_NET_DEVICES": "mlx5_0:1"}


def nic(rail: int, device: str) -> dict[str, Any]:
    return {"rail": rail, "rdma_device": device}


def test_devices_follow_the_rails_whatever_they_are_called() -> None:
    identity = {"nics": [nic(1, "mlx5_0"), nic(0, "rocep12s0")]}
    assert FILTERS["splitrail_net_devices"](identity) == "rocep12s0:1,mlx5_0:1"


@pytest.mark.parametrize(
    ("nics", "says"),
    [([], "the node has no RDMA"), ([nic(0, "mlx5_0"), nic(1, "")], "rail1 has no RDMA device")],
)
def test_a_rail_without_a_device(nics: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(AnsibleFilterError, match=says):
        FILTERS["splitrail_net_devices"]({"nics": nics})


@pytest.mark.parametrize("tls", ["rc,sm,self", "rc_verbs,self", "ud,sm", "dc_x,rc_x,self", "^tcp", "^sm,tcp"])
def test_rdma_alone_is_taken(tls: str) -> None:
    env = {**GOOD, "UCX_TLS": tls}
    assert FILTERS["splitrail_ucx_env"](env, "rdma") == env


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"UCX_TLS": "rc,tcp,self"}, "UCX_TLS rc,tcp,self has tcp.*take it out"),
        ({"UCX_TLS": "tcp"}, "has tcp"),
        ({"UCX_TLS": "all"}, "lets UCX choose tcp"),
        ({"UCX_TLS": ""}, "UCX_TLS is not set and lets UCX choose tcp"),
        ({"UCX_TLS": "^sm"}, "leaves tcp in"),
        ({"UCX_TLS": "sm,self"}, "no RDMA transport: add rc"),
        ({"UCX_NET_DEVICES": "all"}, "UCX_NET_DEVICES names no device"),
        ({"UCX_NET_DEVICES": ""}, "UCX_NET_DEVICES names no device"),
        ({"UCX_MEM_MMAP_HOOK_MODE": "none"}, "crashes UCX on ROCm: remove it"),
    ],
)
def test_what_could_hide_tcp_is_refused(change: dict[str, str], says: str) -> None:
    with pytest.raises(AnsibleFilterError, match=says):
        FILTERS["splitrail_ucx_env"]({**GOOD, **change}, "rdma")


@pytest.mark.parametrize("tls", ["tcp,self", "cuda_ipc,cuda_copy,sm,tcp,self", "rc,sm", "all", "^ib", ""])
def test_without_a_fabric_a_lost_peer_must_be_noticed(tls: str) -> None:
    assert FILTERS["splitrail_ucx_env"]({"UCX_TLS": tls}, "tcp")


@pytest.mark.parametrize(
    "change",
    [{"UCX_NET_DEVICES": "all"}, {"UCX_NET_DEVICES": ""}, {"UCX_MEM_MMAP_HOOK_MODE": "none"}],
)
def test_what_only_rdma_forbids_is_taken_without_it(change: dict[str, str]) -> None:
    assert FILTERS["splitrail_ucx_env"]({**GOOD, **change}, "tcp")


@pytest.mark.parametrize("tls", ["sm,self", "cuda_ipc,cuda_copy,sm,self"])
def test_transports_that_nixl_cannot_start_with(tls: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"UCX_TLS {tls} has no transport that can tell.*add tcp"):
        FILTERS["splitrail_ucx_env"]({"UCX_TLS": tls}, "tcp")


def test_an_unset_variable_is_refused_too() -> None:
    with pytest.raises(AnsibleFilterError, match=r"UCX_TLS is not set.*UCX_NET_DEVICES names no device"):
        FILTERS["splitrail_ucx_env"]({}, "rdma")


def test_no_hook_is_no_fault_without_rocm() -> None:
    env = {**GOOD, "UCX_TLS": "rc,self", "UCX_MEM_MMAP_HOOK_MODE": "none"}
    assert FILTERS["splitrail_ucx_env"](env, "rdma") == env


def test_engines_get_nothing_that_undoes_the_proof() -> None:
    with pytest.raises(AnsibleFilterError, match=r"pools\.decode\.env sets UCX_TLS over what"):
        FILTERS["splitrail_engine_env"]({"UCX_TLS": "tcp", "A": "1"}, "rdma", "pools.decode.env")
    assert FILTERS["splitrail_engine_env"]({"A": "1"}, "rdma", "pools.decode.env") == {"A": "1"}
    assert FILTERS["splitrail_engine_env"]({"UCX_TLS": "tcp"}, "tcp", "llm_serve_env") == {"UCX_TLS": "tcp"}
