from __future__ import annotations

import pytest

from splitrail.run.messages import HIDDEN, cure, failure_message, scrub

SECRET = "s3cr3tValue12345"  # noqa: S105  # what the scrubber has to find


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}",
        f"'Authorization': 'Bearer {SECRET}'",
        f'{{\\"Authorization\\": \\"Bearer {SECRET}\\"}}',
        f"sent bearer {SECRET} to the head",
        f"password={SECRET}",
        f"PASSWORD: '{SECRET}'",
        f'"api_key": "{SECRET}"',
        f"token = {SECRET}, retry",
        f"https://user:{SECRET}@registry/v2",
        f"hf_{SECRET}",
        f"ghp_{SECRET}",
        f"eyJhbGciOiJI.{SECRET}.abc",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}",
    ],
)
def test_secrets_are_scrubbed(text: str) -> None:
    assert SECRET not in scrub(text)
    assert "***" in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "non-zero return code",
        "https://head:8000/v1/models answered 503",
        "No space left on device: /var/lib/containers",
        "3 tokens were generated",
    ],
)
def test_plain_messages_stay(text: str) -> None:
    assert scrub(text) == text


def test_a_censored_result_says_only_that() -> None:
    assert failure_message({"censored": "hidden", "msg": SECRET}) == HIDDEN
    assert failure_message({"msg": SECRET}, no_log=True) == HIDDEN
    assert failure_message({"msg": SECRET, "_ansible_no_log": True}) == HIDDEN


def test_arguments_and_results_never_show() -> None:
    text = failure_message(
        {"msg": "failed", "cmd": SECRET, "stdout": SECRET, "invocation": {"module_args": {"x": SECRET}}}
    )
    assert text == "failed"


def test_a_command_shows_the_end_of_its_stderr() -> None:
    text = failure_message({"msg": "non-zero return code", "rc": 1, "stderr": "\n".join("abcdefgh")})
    assert text == "non-zero return code\nd\ne\nf\ng\nh"


def test_a_loop_shows_each_reason_once_and_no_item() -> None:
    bad = {"failed": True, "msg": "disk full", "item": SECRET}
    text = failure_message({"msg": "One or more items failed", "results": [bad, {"msg": "fine"}, bad]})
    assert text == "One or more items failed\ndisk full"


def test_an_uncensored_loop_may_hold_a_censored_item() -> None:
    item = {"failed": True, "censored": "x", "msg": SECRET}
    assert SECRET not in failure_message({"msg": "One or more items failed", "results": [item]})


def test_a_dump_is_cut() -> None:
    assert len(failure_message({"msg": "x" * 100_000})) < 5000


def test_no_message_is_said_so() -> None:
    assert failure_message({}) == "failed without a message"


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("Host key verification failed.", "known_hosts"),
        ("root@n1: Permission denied (publickey,password).", "authorized_keys"),
        ("Missing sudo password", "sudo"),
        ("ssh: Could not resolve hostname n1", "ansible_host"),
        ("connect to host n1 port 22: Connection refused", "sshd"),
        ("connect to host n1 port 22: Connection timed out", "firewall"),
        ("write failed: No space left on device", "Free space"),
        ("/bin/sh: 1: /usr/bin/python3: not found", "Install python3"),
    ],
)
def test_known_failures_have_a_cure(message: str, word: str) -> None:
    assert word in (cure(message) or "")


def test_an_unknown_failure_has_none() -> None:
    assert cure("the moon is in the wrong phase") is None
