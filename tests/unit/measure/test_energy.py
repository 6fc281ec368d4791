"""Energy: what RAPL's counters say of work, wherever they begin anew; nothing where a machine does not tell."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from support.shelf import Shelf

from qray.measure import energy, latency
from qray.measure.energy import meter_of
from qray.measure.latency import interleave
from qray.study import Measure

AROUND = 1_000_000


def zone(folder: Path, name: str, microjoules: int = 0) -> Path:
    """A zone as Linux has it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{AROUND}\n")
    return folder / name / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_packages_are_added_and_what_is_part_of_one_is_not(powercap: Path) -> None:
    counters = [zone(powercap, "intel-rapl:0", 100), zone(powercap, "intel-rapl:1", 999_900)]
    part = zone(powercap, "intel-rapl:0:0", 50)
    (powercap / "intel-rapl").mkdir()
    meter = meter_of("cpu")
    assert meter is not None
    before = meter.read()
    counters[0].write_text("500100\n")
    # It began anew meanwhile.
    counters[1].write_text("400000\n")
    part.write_text("900000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(0.5 + 0.4001)


@pytest.mark.parametrize("how", ["none", "unreadable", "empty"])
def test_a_machine_that_does_not_tell_has_no_meter(powercap: Path, how: str) -> None:
    if how == "unreadable":
        if os.geteuid() == 0:
            zone(powercap, "intel-rapl:0").unlink()
        else:
            zone(powercap, "intel-rapl:0").chmod(0)
    if how == "empty":
        zone(powercap, "intel-rapl:0").write_text("")
    assert meter_of("cpu") is None


def test_a_gpu_is_found_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter((5_000, 5_000, 7_500))
    library = ModuleType("pynvml")
    vars(library).update(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda name: {"GPU-ab": 1}[name],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(told),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="ab"))
    meter = meter_of("cuda")
    assert meter is not None
    assert meter.joules(meter.read(), meter.read()) == 2.5


def test_without_a_gpu_there_is_no_meter_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meter_of("cuda") is None


def test_each_variant_is_given_what_its_own_calls_used(
    powercap: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a counter that every reading moves: 10 microjoules between the beginning of a block and its end."""
    counter = zone(powercap, "intel-rapl:0")
    read = energy.Rapl.read

    def moving(meter: energy.Rapl) -> tuple[int, ...]:
        found = read(meter)
        counter.write_text(f"{found[0] + 10}")
        return found

    monkeypatch.setattr(energy.Rapl, "read", moving)
    monkeypatch.setattr(latency, "load_average", lambda: 0.0)
    settings = Measure(seconds=0.02, min_calls=6, blocks=3, warmup_calls=1)
    request = {
        "point": {"device": "cpu", "threads": 1, "batch": 1}, "measure": settings.model_dump(mode="json"),
        "artifacts": {name: str(shelf[name].folder) for name in ("fp32", "dynamic")},
    }  # fmt: skip
    found = latency._measure_here(request)
    assert found["joules"] == pytest.approx({"fp32": 3 * 10e-6, "dynamic": 3 * 10e-6})


def test_what_a_block_is_timed_within_holds_its_calls_and_no_others() -> None:
    order: list[str] = []

    class Around:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            order.append(f"<{self.name}")

        def __exit__(self, *error: object) -> None:
            order.append(f"{self.name}>")

    settings = Measure(seconds=1e-6, min_calls=2, blocks=2, warmup_calls=1)
    interleave({"a": lambda: order.append("a")}, settings, around=Around)
    # A call to warm up, and before each block one to bring the weights back.
    assert re.fullmatch(r"a a <a( a)+ a> a <a( a)+ a>", " ".join(order))
