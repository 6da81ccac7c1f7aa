"""Judge a mesh: findings for each host, and each fault at the host that it is the fault of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median_high, median_low
from typing import Any

from splitrail.ansible.module_utils.splitrail_checks import check
from splitrail.fabric.mesh_data import Node, RailPort, Reading, Result, Wiring
from splitrail.fabric.thresholds import Row, row_of

Check = dict[str, Any]

# What a sender and a receiver count when a packet did not arrive or arrived late: names of mlx5 and of rxe.
# One lost packet counts at both ends, so the larger of the two sums is taken.
SENDER = (
    "packet_seq_err",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "rcvd_seq_err",
    "completer_retry_err",
    "retry_exceeded_err",
    "send_err",
)
RECEIVER = ("out_of_sequence", "out_of_seq_request", "duplicate_request")
WORD = 4  # port_xmit_data counts words of four bytes
ACCOUNTED = (
    0.9  # of what perftest says went through; its clock and the counters' reading do not start together
)
LISTED = 5  # faulty links of a host and rail that get a check each; a last one sums up the rest


@dataclass(frozen=True)
class Fault:
    """A link that does not reach what is asked of it."""

    name: str
    reading: Reading
    measured: Any
    required: Any
    unit: str
    why: str
    badness: float  # to name the worst first


@dataclass
class Judgement:
    """Findings by host, and the faults for the picture, worst first."""

    checks: dict[str, list[Check]]
    faults: list[Fault]
    weak: list[Reading] = field(default_factory=list)


def lost_packets(reading: Reading) -> int:
    """Packets that were sent again, as the counters of both ends tell."""
    return max(
        sum(reading.source_counters.get(name, 0) for name in SENDER),
        sum(reading.target_counters.get(name, 0) for name in RECEIVER),
    )


def packets(reading: Reading) -> int:
    """How many packets the bandwidth test took."""
    return max(1, reading.bytes // max(reading.mtu, 256))


def counted_bytes(reading: Reading) -> int | None:
    """What the sender's RDMA port says that it sent; None when it counts neither bytes nor packets."""
    sent = reading.source_counters
    if "port_xmit_data" in sent:
        return WORD * sent["port_xmit_data"]
    return sent["sent_pkts"] * reading.mtu if "sent_pkts" in sent else None


def judge(result: Result, rows: Sequence[Row]) -> Judgement:
    """All findings of a mesh. Raises MeshError when no threshold fits a rail."""
    nodes = {node.name: node for node in result.nodes}
    checks: dict[str, list[Check]] = {name: [] for name in nodes}
    for name, made in wiring_checks(nodes, result.wiring).items():
        checks[name] += made
    for name, why in sorted(result.set_aside.items()):
        checks[name].append(
            check(
                "fabric.node",
                name,
                False,
                f"set aside: {why}",
                "measured with all of its peers",
                hint=f"Look at {name} first (its rails, its load, its journal), then run the proof again; "
                "with --resume only what is missing is measured.",
            )
        )
    faults, weak = find_faults(result, rows)
    blamed = blame(result, faults)
    for name, node in nodes.items():
        checks[name] += _mesh_checks(result, rows, node, blamed[name])
        checks[name].append(_coverage(result, name))
    return Judgement(checks, sorted(faults, key=lambda fault: -fault.badness), weak)


def find_faults(result: Result, rows: Sequence[Row]) -> tuple[list[Fault], list[Reading]]:
    """Every link under its thresholds, and those that pass and are weak."""
    ports = {(node.name, port.rail): port for node in result.nodes for port in node.rails}
    speeds: dict[int, list[float]] = defaultdict(list)
    times: dict[int, list[float]] = defaultdict(list)
    for reading in result.readings:
        if reading.gbps is not None:
            speeds[reading.rail].append(reading.gbps)
        if reading.us is not None:
            times[reading.rail].append(reading.us)
    # Towards the healthy side where half of the links are slow; over all rails where they are of one kind.
    every = [gbps for found in speeds.values() for gbps in found]
    alike = len({(row_of(rows, port).name, port.rate_gbps) for port in ports.values() if port.device}) <= 1
    medians = {rail: median_high(every if alike else found) for rail, found in speeds.items()}
    all_times = [us for found in times.values() for us in found]
    fastest = {rail: median_low(all_times if alike else found) for rail, found in times.items()}
    faults: list[Fault] = []
    weak: list[Reading] = []
    for reading in result.readings:
        if reading.skipped:
            continue
        port = ports[reading.source, reading.rail]
        row = row_of(rows, port)
        if reading.error:
            faults.append(Fault("fabric.reachable", reading, reading.error, "measured", "", "", float("inf")))
        if reading.gbps is not None:
            faults += _slow(reading, row, port, medians[reading.rail])
            faults += _lossy(reading, row)
            faults += _unaccounted(reading)
            share = row.weak_share_of_rate
            if share and reading.gbps < share.value * port.rate_gbps:
                weak.append(reading)
        if reading.us is not None:
            faults += _late(reading, row, fastest[reading.rail])
    faulty = {id(fault.reading) for fault in faults}
    return faults, [reading for reading in weak if id(reading) not in faulty]


def bandwidth_floor(row: Row, port: RailPort, median: float) -> tuple[float, str]:
    """The least that a link must carry, and why."""
    floor, why = row.share_of_median.value * median, f"{row.share_of_median.value:.0%} of this mesh's median"
    if row.share_of_rate and row.share_of_rate.value * port.rate_gbps > floor:
        return row.share_of_rate.value * port.rate_gbps, f"{row.share_of_rate.value:.0%} of the link's rate"
    return floor, why


def _slow(reading: Reading, row: Row, port: RailPort, median: float) -> list[Fault]:
    floor, why = bandwidth_floor(row, port, median)
    if reading.gbps is None or reading.gbps >= floor:
        return []
    measured, required = _round(reading.gbps), _round(floor)
    return [Fault("fabric.bandwidth", reading, measured, required, "Gb/s", why, floor / reading.gbps)]


def _late(reading: Reading, row: Row, median: float) -> list[Fault]:
    limits = []
    if row.latency_us:
        limits.append(row.latency_us.value)
    if row.latency_of_median:
        limits.append(row.latency_of_median.value * median)
    if reading.us is None or not limits or reading.us <= min(limits):
        return []
    badness = reading.us / min(limits)
    return [Fault("fabric.latency", reading, _round(reading.us), _round(min(limits)), "us", "", badness)]


def _lossy(reading: Reading, row: Row) -> list[Fault]:
    ppm = 1e6 * lost_packets(reading) / packets(reading)
    if ppm <= row.loss_ppm.value:
        return []
    return [
        Fault(
            "fabric.loss",
            reading,
            _round(ppm),
            row.loss_ppm.value,
            "ppm sent again",
            "",
            ppm / row.loss_ppm.value,
        )
    ]


def _unaccounted(reading: Reading) -> list[Fault]:
    counted = counted_bytes(reading)
    required = round(ACCOUNTED * reading.bytes)
    if counted is not None and counted >= required:
        return []
    measured = "the port counts neither bytes nor packets" if counted is None else counted
    return [Fault("fabric.counted", reading, measured, required, "B", "", 1e3)]


def blame(result: Result, faults: Sequence[Fault]) -> dict[str, list[Fault]]:
    """Each fault under the host that it is the fault of; under both where nothing tells them apart.

    A host that was set aside is to blame. Else it is the end whose share of faulty peers on that rail is
    larger; where these are equal the end whose rail failed a node check, then the end with more faulty peers
    on all rails.
    """
    peers: dict[tuple[str, int], set[str]] = defaultdict(set)
    bad: dict[tuple[str, int], set[str]] = defaultdict(set)
    for reading in result.readings:
        if not reading.skipped:
            peers[reading.source, reading.rail].add(reading.target)
            peers[reading.target, reading.rail].add(reading.source)
    for fault in faults:
        reading = fault.reading
        bad[reading.source, reading.rail].add(reading.target)
        bad[reading.target, reading.rail].add(reading.source)
    in_all = Counter(
        {node.name: sum(len(bad[node.name, port.rail]) for port in node.rails) for node in result.nodes}
    )

    doubtful = {(node.name, port.rail) for node in result.nodes for port in node.rails if port.doubts}

    def guilt(name: str, rail: int) -> tuple[bool, float, bool, int]:
        share = len(bad[name, rail]) / max(1, len(peers[name, rail]))
        return name in result.set_aside, share, (name, rail) in doubtful, in_all[name]

    found: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        source, target, rail = fault.reading.source, fault.reading.target, fault.reading.rail
        one, other = guilt(source, rail), guilt(target, rail)
        if one >= other:
            found[source].append(fault)
        if other >= one:
            found[target].append(fault)
    return found


CURES: dict[str, Callable[[str, Fault], str]] = {
    "fabric.reachable": lambda host, fault: (
        f"Look at rail{fault.reading.rail} of {host}: its address, GID and routes, its switch port, and a "
        f"firewall on {host} between the nodes."
    ),
    "fabric.bandwidth": lambda host, fault: (
        f"Look at rail{fault.reading.rail} of {host}: cable and transceiver, PCIe width, PFC and ECN at "
        f"{host} and at its switch port, and what shapes or shares the link."
    ),
    "fabric.latency": lambda host, fault: (
        f"Look at rail{fault.reading.rail} of {host}: CPU frequency and C-states, load, and queues at its "
        "switch port."
    ),
    "fabric.loss": lambda host, fault: (
        f"Look at rail{fault.reading.rail} of {host}: packets are lost and sent again; check PFC "
        f"and ECN at both ends of its cable, and `ethtool -S rail{fault.reading.rail}` for discards "
        "and symbol errors."
    ),
    "fabric.counted": lambda host, fault: (
        f"Look at what carried the data of rail{fault.reading.rail} of {host}: its RDMA port did not."
    ),
}


def _mesh_checks(result: Result, rows: Sequence[Row], node: Node, faults: Sequence[Fault]) -> list[Check]:
    """A node's faulty links one by one, and a check a rail of all that is well."""
    made: list[Check] = []
    for port in node.rails:
        mine = [fault for fault in faults if fault.reading.rail == port.rail]
        tested = [
            reading
            for reading in result.readings
            if reading.rail == port.rail and node.name in reading.pair and not reading.skipped
        ]
        for name in CURES:
            found = sorted((f for f in mine if f.name == name), key=lambda fault: -fault.badness)
            made += [_fault_check(node.name, fault) for fault in found[:LISTED]]
            if len(found) > LISTED:
                made.append(
                    check(
                        name,
                        f"rail{port.rail}, {len(found) - LISTED} more links",
                        False,
                        "as above",
                        "as above",
                        hint="The picture in the run record shows them all.",
                    )
                )
            # What was not measured did not pass; that it could not be measured is said by fabric.reachable.
            if not found and [r for r in tested if _measured(name, r)]:
                made.append(_passed(name, port, tested, row_of(rows, port)))
    return made


def _fault_check(host: str, fault: Fault) -> Check:
    reading = fault.reading
    hint = CURES[fault.name](host, fault)
    ends = reading.pair - {host}
    if fault.why:
        hint += f" The floor is {fault.why}."
    return check(
        fault.name,
        str(reading),
        False,
        fault.measured,
        fault.required,
        unit=fault.unit,
        hint=f"{hint} If it is well, look at the other end, {', '.join(sorted(ends))}.",
    )


def _measured(name: str, reading: Reading) -> bool:
    if name == "fabric.reachable":
        return True
    return (reading.us if name == "fabric.latency" else reading.gbps) is not None


def _passed(name: str, port: RailPort, tested: Sequence[Reading], row: Row) -> Check:
    """What a rail's links have in common that pass, or are another host's fault."""
    peers = len({frozenset(reading.pair) for reading in tested})
    subject = f"rail{port.rail}, {peers} peers"
    speeds = [reading.gbps for reading in tested if reading.gbps is not None]
    times = [reading.us for reading in tested if reading.us is not None]
    measured: Any = f"{len(tested)} ways"
    required: Any = "no fault of this host"
    if name == "fabric.bandwidth" and speeds:
        measured = f"{_round(min(speeds))} to {_round(max(speeds))} Gb/s"
    if name == "fabric.latency" and times:
        measured = f"{_round(min(times))} to {_round(max(times))} us"
    if name == "fabric.loss":
        measured = f"{sum(lost_packets(reading) for reading in tested)} packets sent again"
        required = f"at most {row.loss_ppm.value:g} in a million a link"
    return check(name, subject, True, measured, required)


def _coverage(result: Result, name: str) -> Check:
    """What was not tested of a node's links, and why; a sample says so and passes."""
    mine = [reading for reading in result.readings if name in reading.pair]
    skipped = [reading for reading in mine if reading.skipped]
    planned = len({reading.pair for reading in mine})
    peers = len(result.nodes) - 1
    sample = (
        ""
        if planned >= peers
        else f"; a sample of degree {result.settings.sample}: {peers - planned} peers not tested"
    )
    measured = f"{len(mine) - len(skipped)} of {len(mine)} ways to {planned} of {peers} peers{sample}"
    # Another host's fault leaves this one untested too, and is that host's to answer for.
    own = [
        r for r in skipped if r.skipped.startswith(f"node set aside: {name}") or f" of {name}:" in r.skipped
    ]
    others = [r for r in skipped if r not in own]
    why = Counter(r.skipped for r in skipped).most_common(2)
    if skipped:
        measured += f"; not tested: {', '.join(f'{count} ({reason})' for reason, count in why)}"
    tested = len(mine) > len(skipped) or bool(others)
    return check(
        "fabric.coverage",
        f"mesh of {name}",
        not own and bool(mine) and tested,
        measured,
        "every planned way tested, or untested by another host's fault",
        hint=f"Correct what is named above at {name}, and run the proof again.",
    )


def wiring_checks(nodes: dict[str, Node], found: dict[str, Wiring]) -> dict[str, list[Check]]:
    """Whether each rail's cable ends where those of the other nodes' same rail end.

    Rails with one common L2 hear each other's beacons. A rail that hears none is judged by its gateway, which
    answers on the rail that it belongs to (routed links of two addresses have nobody else to hear).
    """
    strays = crossed(nodes, found)
    made: dict[str, list[Check]] = {}
    for name, wiring in found.items():
        made[name] = []
        for port in nodes[name].rails:
            if "fabric.link" in port.faults:
                continue  # nothing to hear; said by its own check
            peers = [nodes[other].port(port.rail) for other in found if other != name]
            if not port.gateway and not any(peer and "fabric.link" not in peer.faults for peer in peers):
                continue  # nobody to hear; said by theirs
            made[name].append(_wire(name, port, nodes[name], wiring, strays.get((name, port.rail))))
    return made


def _wire(name: str, port: RailPort, node: Node, wiring: Wiring, stray: tuple[int, str] | None) -> Check:
    rail = str(port.rail)
    hint = (
        f"Swap the cables of {name} back, or correct the PCI addresses in its roce_nic_rails: compare with "
        "`lspci -D` and the switch's neighbours."
    )
    subject, required = f"{port.name} of {name}", f"on rail {rail}'s network"
    if rail in wiring.errors:
        return check(
            "fabric.wiring", subject, False, wiring.errors[rail], required, hint=f"Bring up {port.name}."
        )
    if stray:
        return check(
            "fabric.wiring", subject, False, f"wired to rail {stray[0]}: {stray[1]}", required, hint=hint
        )
    peers = sorted(
        {peer for peer, number in wiring.heard.get(rail, []) if number == port.rail and peer != name}
    )
    if peers:
        return check(
            "fabric.wiring", subject, True, f"hears {len(peers)} nodes on this rail (beacon)", required
        )
    answered = wiring.answered.get(rail, [])
    if port.gateway and port.gateway in answered:
        return check("fabric.wiring", subject, True, f"gateway {port.gateway} answers (ARP)", required)
    strange = [other for other in node.rails if other.gateway and other.gateway in answered and other != port]
    if strange:
        measured = f"wired to rail {strange[0].rail}: its gateway {strange[0].gateway} answers here (ARP)"
        return check("fabric.wiring", subject, False, measured, required, hint=hint)
    asked = f"gateway {port.gateway} does not answer (ARP), and " if port.gateway else ""
    return check(
        "fabric.wiring",
        subject,
        False,
        f"{asked}no node is heard (beacon)",
        required,
        hint=f"Check cable, switch port and VLAN of {port.name} of {name}.",
    )


def crossed(nodes: dict[str, Node], found: dict[str, Wiring]) -> dict[tuple[str, int], tuple[int, str]]:
    """Ports that hear other rails than their own, and mostly those: {(node, rail): (rail, whom)}.

    Of two ports that hear each other across rails the one is crossed that hears more of the other rails than
    of its own, so that one swapped node among many is named and not its peers. Between two nodes nothing
    tells them apart: both are named.
    """
    made = {}
    for name, wiring in found.items():
        for port in nodes[name].rails:
            heard = [(peer, rail) for peer, rail in wiring.heard.get(str(port.rail), []) if peer != name]
            own = sum(rail == port.rail for _, rail in heard)
            others = Counter(rail for _, rail in heard if rail != port.rail)
            if others:
                rail, count = others.most_common(1)[0]
                if count > own:
                    whom = next(peer for peer, number in heard if number == rail)
                    made[name, port.rail] = (rail, f"hears rail {rail} of {whom} (beacon)")
    return made


def _round(value: float) -> float:
    return float(f"{value:.3g}")
