"""What the agent makes of perftest's output, recorded and sad, and of the wire."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from splitrail.fabric import agent
from splitrail.fabric.agent import AgentError, reading

DATA = Path(__file__).parent / "data"
BW_TEXT = """
 TX depth        : 8
 Mtu             : 4096[B]
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
 65536      688              0.00               0.18               0.000343
---------------------------------------------------------------------------------------
"""
LAT_DURATION = """
 #bytes        #iterations       t_avg[usec]    tps average
 8             2300              431.2          1159.6
"""


def test_recorded_files_of_both_tools() -> None:
    bw = reading("bw", (DATA / "ib_write_bw_4.5.json").read_text(), "")
    assert bw == {"gbps": 0.18, "mtu": 4096, "bytes": 65536 * 500}
    lat = reading("lat", (DATA / "ib_write_lat_4.5.json").read_text(), "")
    assert lat == {"us": 433.13, "mtu": 4096, "bytes": 1600}


def test_newer_files_are_proper_json() -> None:
    document = {
        "test_info": {"test": "RDMA_Write_BW_Test", "Mtu": 4096},
        "results": {
            "MsgSize": 1048576,
            "n_iterations": 46000,
            "BW_peak": 0.0,
            "BW_average": 391.42,
            "MsgRate": 0.0466,
        },
    }
    for indent in (None, 1):
        assert reading("bw", json.dumps(document, indent=indent), "")["gbps"] == 391.42


def test_the_table_where_there_is_no_file() -> None:
    assert reading("bw", "", BW_TEXT) == {"gbps": 0.18, "mtu": 4096, "bytes": 65536 * 688}
    assert reading("lat", "", LAT_DURATION)["us"] == 431.2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it printed nothing"),
        (
            " Couldn't connect to 10.89.0.12:18515\nUnable to open file descriptor for socket connection\n",
            "Couldn't connect",
        ),
        (
            "Failed to modify QP 17 to RTR\n Unable to Connect the HCA's through the link\n",
            "Failed to modify QP 17",
        ),
        (" Completion with error at client\n Failed status 12: wr_id 0 syndrom 0x81\n", "Failed status 12"),
        (BW_TEXT.replace("688", "0"), "nothing went through"),
        (BW_TEXT.replace("0.18", "0.00"), "perftest gave no figure"),
        (BW_TEXT.replace("0.18", "nan"), "perftest gave no figure"),
        (BW_TEXT.replace("0.18", "inf"), "perftest gave no figure"),
        (BW_TEXT.split("65536", maxsplit=1)[0], "perftest gave no figure"),
    ],
)
def test_no_figure_is_no_reading(text: str, why: str) -> None:
    with pytest.raises(AgentError, match=why):
        reading("bw", "", text)


def test_a_latency_file_is_no_bandwidth() -> None:
    with pytest.raises(AgentError):
        reading("bw", (DATA / "ib_write_lat_4.5.json").read_text(), "")


SPEC: dict[str, Any] = {
    **{
        "kind": "bw",
        "device": "mlx5_0",
        "gid_index": 3,
        "size": 1048576,
        "seconds": 1,
        "qps": 4,
        "depth": 128,
    },
    **{"iterations": 1000, "qp_timeout": 14, "tclass": 106, "gpu": 5, "dmabuf": True},
}


def test_command_of_a_client_on_gpu_memory() -> None:
    line = " ".join(agent.perftest(SPEC, 18515, "10.0.0.2", 7))
    assert line == (
        "ib_write_bw -d mlx5_0 -x 3 -p 18515 -F -u 14 -s 1048576 -D 1 -f 0 -q 4 -t 128 -Q 1 --report_gbits "
        "--tclass=106 --use_rocm=5 --use_rocm_dmabuf --out_json --out_json_file=/proc/self/fd/7 10.0.0.2"
    )


def test_command_of_a_server_on_host_memory() -> None:
    spec = {**SPEC, "kind": "lat", "gpu": None, "dmabuf": False, "tclass": None}
    assert (
        " ".join(agent.perftest(spec, 1, "", 7)) == "ib_write_lat -d mlx5_0 -x 3 -p 1 -F -u 14 -s 8 -n 1000"
    )


def test_a_port_counts_as_served_only_by_the_process_that_was_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert agent.listens(os.getpid(), port)
        assert not agent.listens(1, port)
        assert not agent._free(port)
    assert not agent.listens(os.getpid(), port)
    assert agent._free(port)


def test_only_beacons_of_this_run_are_heard() -> None:
    said = agent.beacon("fab-1", "run", 1)
    assert agent.heard_beacon(said + bytes(20), "run") == ("fab-1", 1)
    assert agent.heard_beacon(said, "another") is None
    for noise in (b"", b"\0" * 46, b"[]", b'{"splitrail": "run"}', b"\xff\xfe"):
        assert agent.heard_beacon(noise, "run") is None


def test_arp() -> None:
    asked = agent.arp_request(b"\2\0\0\0\0\1", "10.30.0.0", "10.30.0.1")
    assert len(asked) == 28
    assert agent.arp_answer(asked) == ""  # a question
    answer = asked[:6] + b"\0\2" + b"\2\0\0\0\0\2" + socket.inet_aton("10.30.0.1") + asked[8:18]
    assert agent.arp_answer(answer) == "10.30.0.1"
    assert agent.arp_answer(answer[:20]) == ""


def test_counters_that_moved(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/infiniband/rxe0/ports/1/hw_counters"
    folder.mkdir(parents=True)
    (folder / "sent_pkts").write_text("10\n")
    (folder / "odd").write_text("N/A (no PMA)\n")
    before = agent.counters(tmp_path, "rxe0")
    (folder / "sent_pkts").write_text("17\n")
    (folder / "fresh").write_text("2\n")
    assert before == {"sent_pkts": 10}
    assert agent.growth(before, agent.counters(tmp_path, "rxe0")) == {"sent_pkts": 7, "fresh": 2}
    assert agent.counters(tmp_path, "none") == {}


def test_an_agent_that_loses_its_driver_takes_its_children_along(fabric: Any) -> None:
    (node,) = fabric.nodes("a", rails=1)
    one = fabric.open(node)
    test = {**SPEC, "device": "a0", "rail": 0, "gpu": None, "port": 23900}
    one.ask("serve", 20, job="j", tests=[test], within=10)
    children = Path(f"/proc/{fabric.channels['a'].pid}/task")
    server = int(next(iter((entry / "children").read_text().split()[0] for entry in children.iterdir()
                           if (entry / "children").read_text())))  # fmt: skip
    assert agent.listens(server, 23900)
    one.close()
    until = time.monotonic() + 5
    while Path(f"/proc/{server}").exists() and time.monotonic() < until:
        time.sleep(0.05)  # for the kernel to take it away
    assert not Path(f"/proc/{server}").exists()
