"""What UCX is told, and what it must not be told.

UCX takes the best transport that works. Where TCP is among them, an RDMA that fails shows as nothing but a
throughput many times lower, so where RDMA is declared it may not be among them.

NIXL opens each of its connections with an error handler for a lost peer, its own to itself too. Shared memory
and the GPUs' own copies have none: alone they let no engine start ("no active messages transport ... no peer
failure handler"; seen with NIXL 1.3.1 and 1.5.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Transports that carry data over an RDMA NIC, by the beginnings of their names (rc, rc_mlx5, rc_verbs, ...).
_RDMA = ("rc", "dc", "ud", "ib")
# Those that can tell of a lost peer.
_HANDLES_LOSS = (*_RDMA, "tcp", "all")


class TransportError(ValueError):
    """Settings under which the declared transport could silently be another; names the key and the cure."""


def net_devices(nics: Iterable[Mapping[str, Any]]) -> str:
    """``UCX_NET_DEVICES``: the RDMA device of each rail, in the rails' order.

    The names are those that the node has now. Raises TransportError for a rail without a device.
    """
    ordered = sorted(nics, key=lambda nic: nic["rail"] if nic["rail"] is not None else -1)
    bare = [f"rail{nic['rail']}" for nic in ordered if not nic["rdma_device"]]
    if bare or not ordered:
        raise TransportError(
            f"UCX_NET_DEVICES: {', '.join(bare) or 'the node'} has no RDMA device: "
            "run playbooks/fabric.yml and correct what it names"
        )
    # An Ethernet adapter's RDMA device has one port.
    return ",".join(f"{nic['rdma_device']}:1" for nic in ordered)


def check_node_env(env: Mapping[str, str], transport: str) -> None:
    """Refuse an environment of a node in which NIXL cannot start, or UCX could take TCP for declared RDMA."""
    tls = env.get("UCX_TLS", "")
    if transport != "rdma":
        if tls and not tls.startswith("^") and not any(n.startswith(_HANDLES_LOSS) for n in _names(tls)):
            raise TransportError(
                f"UCX_TLS {tls} has no transport that can tell of a lost peer, which NIXL asks for, "
                "so that no engine would start: add tcp"
            )
        return
    faults = [*_tls_faults(tls)]
    if env.get("UCX_NET_DEVICES", "all") in ("", "all"):
        faults.append(
            "UCX_NET_DEVICES names no device, so UCX would use any NIC: set it to the rails' RDMA devices"
        )
    if env.get("UCX_MEM_MMAP_HOOK_MODE") == "none" and "rocm" in tls:
        faults.append("UCX_MEM_MMAP_HOOK_MODE none crashes UCX on ROCm: remove it")
    if faults:
        raise TransportError("transport rdma is declared; " + "; ".join(faults))


def _names(tls: str) -> list[str]:
    return [name.strip() for name in tls.lstrip("^").split(",") if name.strip()]


def _tls_faults(tls: str) -> list[str]:
    names = _names(tls)
    if not names or "all" in names:
        return [
            f"UCX_TLS {tls or 'is not set and'} lets UCX choose tcp where RDMA fails: "
            "name the transports, such as rc,sm,self"
        ]
    if tls.startswith("^"):
        return [] if "tcp" in names else [f"UCX_TLS {tls} leaves tcp in: name the transports without it"]
    if "tcp" in names:
        return [f"UCX_TLS {tls} has tcp, which UCX takes silently where RDMA fails: take it out"]
    if not any(name.startswith(_RDMA) for name in names):
        return [f"UCX_TLS {tls} has no RDMA transport: add rc"]
    return []


def check_engine_env(env: Mapping[str, str], transport: str, where: str) -> None:
    """Refuse UCX's variables for engines alone where RDMA is declared: they would undo what was proven."""
    found = sorted(key for key in env if key.startswith("UCX_"))
    if transport == "rdma" and found:
        raise TransportError(
            f"{where} sets {', '.join(found)} over what the transport was proven with: "
            "set it for the nodes (ucx_env of the inventory), where the proof and Ray both read it"
        )
