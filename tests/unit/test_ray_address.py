"""Addresses of a cluster as people write them, and what is said of those where nobody answers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from qray.errors import QrayError, UsageError
from qray.ray_address import ask_dashboard, ask_head, check_head, dashboard_address, driver_address
from qray.ray_token import use_token_if_asked


@pytest.fixture
def mute() -> Iterator[str]:
    """HOST:PORT of somebody who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("given", ["127.0.0.1:6399", " 127.0.0.1:6399 ", "127.0.0.1:6399\r\n", "\t127.0.0.1:6399"])
def test_blanks_and_line_ends_are_taken_off(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert driver_address() == "127.0.0.1:6399"
    # Ray reads it for itself.
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:6399"


@pytest.mark.parametrize("given", ["", "  ", "\r\n", "local"])
def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert (driver_address(), "RAY_ADDRESS" in os.environ) == (None, False)


@pytest.mark.parametrize("given", ["auto", " auto\n", "head-node:6379", "[::1]:6379", "10.0.0.9:1"])
def test_what_ray_can_attach_to_is_taken(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert driver_address() == given.strip()


@pytest.mark.parametrize(
    ("given", "example"),
    [
        ("head-node", "head-node:6379"), ("10.0.0.9", "10.0.0.9:6379"), ("10.0.0.9:", "10.0.0.9:6379"),
        ("10.0.0.9:ray", "10.0.0.9:6379"), ("10.0.0.9:99999", "10.0.0.9:6379"), ("10.0.0.9:0", "10.0.0.9:6379"),
        (":6379", "10.0.0.9:6379"), ("head node:6379", "head:6379"), ("ray://head:10001", "head:6379"),
        ("http://head:8265", "head:6379"), ("head:6379/x", "head:6379"), ("gcs://head:1", "head:6379"),
    ],
)  # fmt: skip
def test_a_malformed_address_is_a_sentence_that_says_host_port(
    monkeypatch: pytest.MonkeyPatch, given: str, example: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(QrayError, match="HOST:PORT") as caught:
        driver_address()
    assert example in str(caught.value)
    assert repr(given) in str(caught.value)


def test_a_port_that_nobody_listens_on_is_said_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(QrayError, match=r"127\.0\.0\.1:9, but no Ray head answers there \(.*refused"):
        check_head("127.0.0.1:9")
    assert time.monotonic() - began < 10


def test_a_name_that_nobody_has_is_said_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(QrayError, match=r"no-such-head\.invalid:6379, but no Ray head answers"):
        check_head("no-such-head.invalid:6379")
    assert time.monotonic() - began < 10


def test_who_listens_and_says_nothing_is_no_head(mute: str) -> None:
    began = time.monotonic()
    assert ask_head(mute) not in ("yes", "token")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"), ("127.0.0.1:8265", "http://127.0.0.1:8265"),
        (" http://head:8265/ \r\n", "http://head:8265"), ("https://head:443", "https://head:443"),
        ("https://jobs.example.org", "https://jobs.example.org"),
    ],
)  # fmt: skip
def test_a_dashboards_address_may_leave_out_its_scheme(given: str, expected: str) -> None:
    assert dashboard_address(given) == expected


@pytest.mark.parametrize("given", ["", "head-node", "ray://head:10001", "auto", "http://head", "http://head:x"])
def test_a_malformed_dashboard_address_is_bad_usage_that_says_host_port(given: str) -> None:
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        dashboard_address(given)


def test_a_dashboard_that_is_not_there_is_said_at_once(mute: str) -> None:
    began = time.monotonic()
    answers = {ask_dashboard("http://127.0.0.1:9"), ask_dashboard(f"http://{mute}")}
    assert not answers & {"yes", "token"}
    assert time.monotonic() - began < 15


def test_the_token_question_is_put_to_the_address_without_its_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(address: str) -> str:
        asked.append(address)
        return "token"

    monkeypatch.setattr("qray.ray_token.ask_head", answer)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379 \r")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    use_token_if_asked()
    assert (asked, os.environ.get("RAY_AUTH_MODE")) == (["10.0.0.9:6379"], "token")
