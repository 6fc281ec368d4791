"""The host as results describe it."""

from __future__ import annotations

import socket

import pytest

from qray.measure import host


def test_the_host_is_named_with_its_cores() -> None:
    name = host.host_name()
    assert name.startswith(socket.gethostname())
    assert f"{host.usable_cpus()} cores" in name


def test_flags_are_those_that_decide_about_inference() -> None:
    assert host.cpu_flags() <= set(host.INFERENCE_FLAGS)


@pytest.mark.parametrize(("flags", "expected"), [
    ({"avx2"}, False), ({"avx512_vnni"}, True), ({"avx_vnni"}, True), ({"asimddp"}, True), (set(), False),
])  # fmt: skip
def test_int8_dot_products_are_known_by_their_flags(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: bool
) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset(flags))
    assert host.has_int8_dot_product() is expected


def test_versions_name_what_results_depend_on() -> None:
    assert {"python", "torch", "torchvision", "numpy"} <= set(host.versions())


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PACKAGES", ("no-such-package",))
    assert set(host.versions()) == {"python"}
