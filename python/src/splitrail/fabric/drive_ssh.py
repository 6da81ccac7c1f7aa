"""Reach a node's agent by SSH, as the inventory says the node is reached: one connection, one channel."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from splitrail.fabric.drive import Channel, DriveError, local_channel, remote_command

CONNECT_S = 15.0
KEEPALIVE_S = 10


@dataclass(frozen=True)
class Way:
    """How a node is reached."""

    host: str
    port: int
    user: str | None
    key: str | None
    known_hosts: tuple[str, ...]
    local: bool = False

    @classmethod
    def of(cls, name: str, variables: Mapping[str, Any]) -> Way:
        """The way that a host's ``ansible_*`` variables say. Raises DriveError for one it cannot go."""
        connection = str(variables.get("ansible_connection", "ssh"))
        if connection not in ("ssh", "local", "smart", "ansible.builtin.ssh", "ansible.builtin.local"):
            raise DriveError(f"{name}: the mesh reaches nodes by SSH, and ansible_connection is {connection}")
        options = ssh_options(
            " ".join(str(variables.get(f"ansible_ssh_{kind}_args") or "") for kind in ("common", "extra"))
        )
        jump = [key for key in ("proxyjump", "proxycommand") if key in options]
        if jump:
            raise DriveError(
                f"{name}: ansible_ssh_common_args has {jump[0]}, which the mesh cannot follow: "
                "run it on a machine that reaches the nodes directly"
            )
        known = options.get("userknownhostsfile", ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"])
        return cls(
            host=str(variables.get("ansible_ssh_host") or variables.get("ansible_host") or name),
            port=int(variables.get("ansible_port") or variables.get("ansible_ssh_port") or 22),
            user=_text(variables.get("ansible_user") or variables.get("ansible_ssh_user")),
            key=_text(
                variables.get("ansible_ssh_private_key_file") or variables.get("ansible_private_key_file")
            ),
            known_hosts=(*known, "/etc/ssh/ssh_known_hosts"),
            local=connection.endswith("local"),
        )


def _text(value: Any) -> str | None:
    return str(value) if value else None


def ssh_options(arguments: str) -> dict[str, list[str]]:
    """What ``-o Key=Value`` and ``-J`` in SSH arguments say, keys in small letters, values in words."""
    words, found = shlex.split(arguments), {}
    for place, word in enumerate(words):
        if word.startswith("-J"):
            found["proxyjump"] = [word[2:] or words[place + 1]]
        if not word.startswith("-o"):
            continue
        given = word[2:] or (words[place + 1] if place + 1 < len(words) else "")
        key, _, value = given.replace("=", " ", 1).strip().partition(" ")
        # The value may bear quotes of its own, for ssh to take off.
        found[key.lower()] = shlex.split(value)
    return found


class SshChannel:
    """An agent at the other end of an SSH channel."""

    def __init__(self, name: str, way: Way, *, sudo: bool) -> None:
        self._client = paramiko.SSHClient()
        # Only whom the inventory's known_hosts knows: an agent runs as root.
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            for file in way.known_hosts:
                path = Path(file).expanduser()
                if path.is_file():
                    self._client.load_host_keys(str(path))
            self._client.connect(
                way.host,
                port=way.port,
                username=way.user,
                key_filename=str(Path(way.key).expanduser()) if way.key else None,
                timeout=CONNECT_S,
                banner_timeout=CONNECT_S,
                auth_timeout=CONNECT_S,
            )
            transport = self._client.get_transport()
            if transport is None:
                raise DriveError(f"{name}: SSH to {way.host} ended at once")
            transport.set_keepalive(KEEPALIVE_S)
            self._channel = transport.open_session(timeout=CONNECT_S)
            self._channel.exec_command(remote_command(sudo=sudo and way.user != "root"))
        except (paramiko.SSHException, OSError) as error:
            self._client.close()
            raise DriveError(
                f"{name}: SSH to {way.user or 'this user'}@{way.host}:{way.port} failed: {error}; "
                "Ansible reaches it by the same variables: compare with `ansible -m ping`"
            ) from error

    def send(self, data: bytes) -> None:
        self._channel.sendall(data)

    def lines(self) -> Iterable[bytes]:
        return self._channel.makefile("rb")

    def complaint(self) -> str:
        self._channel.settimeout(2)
        try:
            return self._channel.recv_stderr(1 << 16).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        self._client.close()


def open_channel(name: str, variables: Mapping[str, Any], *, sudo: bool = True) -> Channel:
    """A channel on which the node waits for the agent. Raises DriveError."""
    way = Way.of(name, variables)
    return local_channel() if way.local else SshChannel(name, way, sudo=sudo)
