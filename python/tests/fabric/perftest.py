#!/usr/bin/env python3
"""Stands in for ib_write_bw and ib_write_lat in the tests: a server that listens, a client that connects.

What a link carries is read from the file named by FAKE_FABRIC. Keys are "DEVICE" or "DEVICE>PEER-DEVICE" of
the client's and the server's device, values {"gbps", "us", "error", "hang", "garbage", "lost", "uncounted",
"bind"}; what is not named is healthy. Counters of the client's device move in the sysfs below FAKE_ROOT.
"""

import json
import os
import re
import socket
import sys
import time
from pathlib import Path

HELP = "  -D, --duration\n      --out_json\n      --out_json_file=<file>\n      --tclass=<value>\n"


def count(device: str, name: str, amount: int) -> None:
    file = Path(os.environ["FAKE_ROOT"], "sys/class/infiniband", device, "ports/1/hw_counters", name)
    if file.exists():
        file.write_text(str(int(file.read_text()) + amount))


def main() -> int:
    kind = "bw" if Path(sys.argv[0]).name.endswith("bw") else "lat"
    arguments = sys.argv[1:]
    if "--help" in arguments:
        sys.stdout.write(HELP)
        return 0
    value = {flag: arguments[place + 1] for place, flag in enumerate(arguments[:-1]) if flag.startswith("-")}
    device, port = value["-d"], int(value["-p"])
    peer = arguments[-1] if re.fullmatch(r"\d+(\.\d+){3}", arguments[-1]) else ""
    plan = json.loads(Path(os.environ["FAKE_FABRIC"]).read_text())
    if not peer:
        if plan.get(device, {}).get("bind"):
            sys.stdout.write("Couldn't bind to the port: Address already in use\n")
            return 1
        with socket.create_server(("0.0.0.0", port)) as server:  # noqa: S104
            server.settimeout(60)
            link, _ = server.accept()
            with link:
                link.sendall(device.encode() + b"\n")
                link.recv(1)
        return 0
    with socket.create_connection((peer, port), timeout=10) as link:
        other = link.makefile().readline().strip()
        here = {**plan.get(device, {}), **plan.get(other, {}), **plan.get(f"{device}>{other}", {})}
        if here.get("hang"):
            time.sleep(60)
        if here.get("error"):
            sys.stdout.write(f" Completion with error at client\n{here['error']}\n")
            return 1
        if here.get("garbage"):
            sys.stdout.write("segfault is not a figure\n")
            return 0
        size = int(value["-s"])
        rounds = 1000
        if kind == "bw":
            sent = 0 if here.get("uncounted") else size * rounds // 4096
            count(device, "sent_pkts", sent)
            count(device, "rcvd_seq_err", here.get("lost", 0))
            row = f" {size} {rounds} 0.00 {here.get('gbps', 100.0)} 0.1"
        else:
            row = f" {size} {rounds} 1.0 9.0 {here.get('us', 2.0)} 2.2 0.1 3.0 8.0"
        sys.stdout.write(f" Mtu             : 4096[B]\n #bytes #iterations\n{row}\n")
        link.sendall(b"x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
