"""How a node is reached is what the inventory says, and what cannot be followed is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitrail.fabric.drive import DriveError, ProcessChannel, boot_command, remote_command
from splitrail.fabric.drive_ssh import SshChannel, Way, open_channel, ssh_options


def test_the_inventorys_words() -> None:
    way = Way.of(
        "fab-1",
        {
            "ansible_host": "10.89.0.11",
            "ansible_user": "splitrail",
            "ansible_ssh_private_key_file": "/lab/id",
            "ansible_ssh_common_args": '-o UserKnownHostsFile="/lab/known_hosts"',
            "ansible_port": "2222",
        },
    )
    assert (way.host, way.port, way.user, way.key) == ("10.89.0.11", 2222, "splitrail", "/lab/id")
    assert way.known_hosts == ("/lab/known_hosts", "/etc/ssh/ssh_known_hosts")


def test_what_ssh_takes_when_nothing_is_said() -> None:
    way = Way.of("node", {})
    assert (way.host, way.port, way.user, way.key, way.local) == ("node", 22, None, None, False)
    assert way.known_hosts[0] == "~/.ssh/known_hosts"


@pytest.mark.parametrize("arguments", ["-J jump", "-Jjump", "-o ProxyJump=jump", "-oProxyCommand='nc %h %p'"])
def test_a_jump_is_refused_and_named(arguments: str) -> None:
    with pytest.raises(DriveError, match=r"node: ansible_ssh_common_args has proxy(jump|command)"):
        Way.of("node", {"ansible_ssh_common_args": arguments})


def test_another_connection_is_refused() -> None:
    with pytest.raises(DriveError, match="ansible_connection is docker"):
        Way.of("node", {"ansible_connection": "docker"})


def test_options_in_all_their_spellings() -> None:
    assert ssh_options('-C -o A=1 -oB=2 -o "C 3 4"') == {"a": ["1"], "b": ["2"], "c": ["3", "4"]}


def test_root_needs_no_sudo_and_others_do() -> None:
    assert boot_command(10, sudo=True)[:2] == ["sudo", "-n"]
    assert remote_command(sudo=False).startswith("python3 -c ")


def test_nobody_there_is_said_with_the_way(tmp_path: Path) -> None:
    way = Way("127.0.0.1", 1, "someone", None, (str(tmp_path / "none"),))
    with pytest.raises(DriveError, match=r"node: SSH to someone@127\.0\.0\.1:1 failed"):
        SshChannel("node", way, sudo=True)


def test_a_local_host_needs_no_ssh() -> None:
    channel = open_channel("localhost", {"ansible_connection": "local"})
    assert isinstance(channel, ProcessChannel)
    channel.close()
