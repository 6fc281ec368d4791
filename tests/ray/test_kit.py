"""A kit of a real run, carried to an environment that has an engine, numpy and nothing else, and back."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from support.runs import Finished, here, main_here, results, run_tiny, units

WholeRun = Callable[[int], tuple[Path, Finished]]
VARIANT, DEVICE = "ptq-onnxruntime", "pi-5"
FOR_A_GPU = """variants=[{name: fp32, method: fp32, engine: eager}, {name: fp32-cuda, method: fp32, engine: eager,
    device: cuda}, {name: ptq-cuda, method: ptq, engine: triton, device: cuda, observer: minmax}]"""


@pytest.fixture(scope="module")
def out(whole_run: WholeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a whole run, to which a kit was made."""
    return Path(shutil.copytree(whole_run(1)[0], tmp_path_factory.mktemp("kit") / "out"))


@pytest.fixture(scope="module")
def kit(out: Path, tiny_dataset: Path) -> Path:
    """The kit."""
    folder = out.parent / "kit"
    done = main_here("kit", out, "--to", folder, "--data", tiny_dataset)
    assert done.code == 0, done.stderr
    assert (
        "left out: fp32: a kit for cpu has artifacts of onnxruntime, openvino, executorch, qnnpack, not of eager"
        in done.stdout
    )
    return folder


def bare(folder: Path, *packages: str) -> Path:
    """A Python with these packages and nothing else."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in packages:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        installed = Path(spec.origin).parent
        (site / name).symlink_to(installed)
        # Libraries that a wheel brings lie beside it.
        if (libraries := installed.with_name(f"{name}.libs")).is_dir():
            (site / libraries.name).symlink_to(libraries)
    return folder / "bin" / "python"


def bench(python: Path, kit: Path, *arguments: object, to: Path) -> subprocess.CompletedProcess[str]:
    """Run bench.py as on the device."""
    command = [python, "-I", kit / "bench.py", "--name", DEVICE, "--to", to, *arguments]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, cwd=to.parent
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has ONNX Runtime, and neither torch nor qray."""
    found = bare(tmp_path_factory.mktemp("bare") / "venv", "numpy", "onnxruntime")
    for name in ("torch", "qray", "ray"):
        assert subprocess.run([found, "-I", "-c", f"import {name}"], capture_output=True, check=False).returncode
    return found


@pytest.fixture(scope="module")
def measured(python: Path, kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes back."""
    file = tmp_path_factory.mktemp("back") / "measured.json"
    done = bench(python, kit, "--minutes", 0.4, to=file)
    assert done.returncode == 0, done.stdout + done.stderr
    return file


def change(file: Path, to: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of what came back, changed."""
    record = json.loads(file.read_text())
    edit(record)
    to.write_text(json.dumps(record))
    return to


def test_a_device_gets_rows_with_its_own_speed_and_the_verdict_on_the_kits_clips(
    out: Path, measured: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(out, tmp_path / "out"))
    before = results(mine)
    done = here("run", "table", mine, "--measured", measured)
    assert done.code == 0, done.stderr
    assert "On devices that kits were carried to, MAE on 10 VAL clips" in done.stdout
    rows = results(mine)
    pd.testing.assert_frame_equal(rows[rows["device"] != DEVICE].reset_index(drop=True)[list(before)], before)
    (row,) = rows[rows["device"] == DEVICE].to_dict("records")
    assert (row["variant"], row["split"], row["n_clips"], row["status"]) == (VARIANT, "VAL", 10, "ok")
    # The same machine computes the same.
    assert row["device_rms"] == pytest.approx(0, abs=1e-4)
    assert row["latency_p50_ms"] > 0
    assert row["cold_start_s"] > 0
    assert row["sustained_ratio"] > 0
    assert 10 < row["peak_rss_mb"] < rows[(rows["variant"] == "fp32")]["peak_rss_mb"].max()
    assert row["host"].startswith(f"{DEVICE} (")
    # Nobody has read there what the engine executes.
    assert pd.isna(row["int8_mac_share"])
    assert row["cpu_flags"] == rows[rows["variant"] == "fp32"]["cpu_flags"].iloc[0]
    assert row["verdict"] in ("non-inferior", "inferior", "inconclusive")
    (build,) = (unit for unit in units(mine, "build") if unit["label"] == f"build {VARIANT}")
    assert row["size_bytes"] == build["artifact"]["size_bytes"]
    choice = json.loads(main_here("pick", mine, "--device", DEVICE, "--json").stdout)
    assert choice["device"] == DEVICE
    assert {each["name"] for each in (choice["picked"], *choice["others"]) if each} == {VARIANT}
    report = main_here("report", mine)
    assert report.code == 0, report.stderr
    assert DEVICE in (mine / "report.md").read_text()
    # It is part of the run from now on, whatever is computed anew.
    assert here("run", "table", mine).code == 0
    pd.testing.assert_frame_equal(results(mine), rows)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")
def test_what_is_for_a_gpu_is_built_without_one_and_carried_to_one(
    whole_run: WholeRun, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Its programs are tried on this CPU, by a kit that says they are for one."""
    out, kit, back = Path(shutil.copytree(whole_run(1)[0], tmp_path / "out")), tmp_path / "kit", tmp_path / "back.json"
    done = run_tiny("all", tiny_dataset, out, "--set", FOR_A_GPU, "--set", "sweep=null")
    assert done.code == 0, done.stderr
    done = main_here("kit", out, "--device", "cuda", "--to", kit, "--data", tiny_dataset)
    assert done.code == 0, done.stderr
    assert "left out: fp32: it was built for cpu, and this kit is for cuda" in done.stdout
    identity = hashlib.sha256((kit / "kit.json").read_bytes()).hexdigest()
    done = bench(Path(sys.executable), kit, to=back)
    assert (done.returncode, done.stdout.count("skipped torch finds no NVIDIA GPU here")) == (1, 2), done.stderr
    record = json.loads((kit / "kit.json").read_text())
    for variant in record["variants"]:
        variant["device"] = "cpu"
    (kit / "kit.json").write_text(json.dumps(record))
    done = bench(Path(sys.executable), kit, to=back)
    assert done.returncode == 0, done.stdout + done.stderr
    assert here("run", "table", out, "--measured", change(back, back, lambda one: one.update(kit=identity))).code == 0
    rows = results(out)
    assert set(rows[rows["device"] == "cuda"]["reason"]) == {"no machine of this Ray has an NVIDIA GPU"}
    fp32, ptq = rows[rows["device"] == DEVICE].sort_values("variant").to_dict("records")
    assert (fp32["variant"], ptq["variant"], fp32["status"], ptq["status"]) == ("fp32-cuda", "ptq-cuda", "ok", "ok")
    assert fp32["device_rms"] == pytest.approx(0, abs=1e-4)
    assert ptq["device_rms"] == pytest.approx(0, abs=1e-3)
    assert fp32["speedup"] == 1
    assert ptq["speedup"] == pytest.approx(fp32["latency_p50_ms"] / ptq["latency_p50_ms"], rel=0.5)


def test_a_kit_that_is_not_as_it_was_is_refused(python: Path, kit: Path, tmp_path: Path) -> None:
    for name, spoil, words in (
        ("clips.npy", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"), "is not as it was written"),
        (f"artifacts/{VARIANT}/model.onnx", lambda path: path.unlink(), "is missing: the kit was not copied whole"),
        ("kit.json", lambda path: path.unlink(), "this is no kit, or not all of one"),
        ("SHA256SUMS", lambda path: (path.parent / "kit.json").write_text("{"), "is not as it was written"),
    ):
        copy = Path(shutil.copytree(kit, tmp_path / name.replace("/", "-")))
        spoil(copy / name)
        done = bench(python, copy, to=tmp_path / "measured.json")
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
        assert not (tmp_path / "measured.json").exists()


def test_an_engine_that_is_not_there_is_a_reason(kit: Path, out: Path, tmp_path: Path) -> None:
    done = bench(bare(tmp_path / "venv", "numpy"), kit, to=tmp_path / "measured.json")
    assert done.returncode == 1
    assert "no variant of the kit ran here" in done.stderr
    mine = Path(shutil.copytree(out, tmp_path / "out"))
    assert here("run", "table", mine, "--measured", tmp_path / "measured.json").code == 0
    rows = results(mine)
    (row,) = rows[rows["device"] == DEVICE].to_dict("records")
    assert (row["status"], "onnxruntime cannot be imported" in row["reason"]) == ("skipped", True)
    assert row["latency_p50_ms"] is None or pd.isna(row["latency_p50_ms"])


def test_what_there_is_no_time_for_is_a_reason(python: Path, kit: Path, out: Path, tmp_path: Path) -> None:
    done = bench(python, kit, "--limit", 0, to=tmp_path / "measured.json")
    assert (done.returncode, "no variant of the kit ran here" in done.stderr) == (1, True)
    mine = Path(shutil.copytree(out, tmp_path / "out"))
    assert here("run", "table", mine, "--measured", tmp_path / "measured.json").code == 0
    rows = results(mine)
    (row,) = rows[rows["device"] == DEVICE].to_dict("records")
    assert (row["status"], row["reason"]) == ("skipped", "the time that --limit gave was over")


def test_a_device_that_computes_something_else_is_found_out(python: Path, kit: Path, tmp_path: Path) -> None:
    """Here an engine whose predictions are off by a point."""
    other = bare(tmp_path / "venv", "numpy")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    spec = find_spec("onnxruntime")
    assert spec is not None
    real = str(Path(str(spec.origin)).parent.parent)
    (site / "onnxruntime.py").write_text(
        "import sys, importlib\n"
        "own = sys.modules.pop('onnxruntime')\n"
        f"sys.path.insert(0, {real!r})\n"
        "true = importlib.import_module('onnxruntime')\n"
        "sys.path.pop(0)\n"
        "class Off(true.InferenceSession):\n"
        "    def run(self, *arguments): return [values + 1 for values in super().run(*arguments)]\n"
        "true.InferenceSession = Off\n"
    )
    done = bench(other, kit, to=tmp_path / "measured.json")
    record = json.loads((tmp_path / "measured.json").read_text())["variants"][VARIANT]
    assert (record["status"], done.returncode) == ("failed", 1)
    assert "its predictions are 1 (RMS) from those of where it was built" in record["reason"]


def test_what_comes_back_must_be_of_a_kit_of_this_run_and_hold_what_bench_writes(
    out: Path, measured: Path, tmp_path: Path, whole_run: WholeRun
) -> None:
    other = hashlib.sha256(b"another kit").hexdigest()

    def far(record: dict[str, Any]) -> None:
        record["variants"][VARIANT]["predictions"][3] += 40.0

    for edit, words in (
        (lambda record: record.update(kit=other), "measured with a kit of another run, or one that was changed"),
        (lambda record: record.pop("machine"), "machine: Field required"),
        (lambda record: record.update(device="cpu"), "would be taken for this run's own"),
        (lambda record: record.update(device="../../x"), "device: String should match pattern"),
        (lambda record: record["variants"].pop(VARIANT), "its variants are not those of the kit"),
        (lambda record: record["variants"][VARIANT]["predictions"].pop(), "has 9 predictions of 10 clips"),
        (far, f"{VARIANT} is called right, and its predictions are"),
        (lambda record: record.update(format=2), "format 2, this qray reads format 1"),
    ):
        changed = change(measured, tmp_path / "changed.json", edit)
        done = main_here("run", "table", out, "--measured", changed)
        assert (done.code, words in done.stderr) == (1, True), (words, done.stderr)
    (tmp_path / "changed.json").write_text("{")
    assert main_here("run", "table", out, "--measured", tmp_path / "changed.json").code == 1
    assert "no such file" in main_here("run", "table", out, "--measured", tmp_path / "none.json").stderr
    # Nor is it taken by a run that made no kit.
    refused = main_here("run", "table", shutil.copytree(whole_run(1)[0], tmp_path / "other"), "--measured", measured)
    assert "measured with a kit of another run" in refused.stderr
    assert not (out / "measured").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nobody",), 2, "no variant 'nobody'; those of the study: fp32, ptq-onnxruntime, finetune"),
        (("fp32",), 2, "fp32: a kit for cpu has artifacts of onnxruntime, openvino, executorch, qnnpack, not of eager"),
        ((VARIANT, "--clips", "0"), 2, "--clips"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    out: Path, tiny_dataset: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = main_here("kit", out, *arguments, "--to", tmp_path / "kit", "--data", tiny_dataset)
    assert (done.code, words in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "kit").exists()


def test_a_kit_is_not_written_over_anything(out: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    done = main_here("kit", out, "--to", tmp_path, "--data", tiny_dataset)
    assert (done.code, "is there already" in done.stderr) == (2, True), done.stderr


def test_the_smallest_program_predicts_what_must_come_out(python: Path, kit: Path) -> None:
    command = [python, "-I", kit / "artifacts" / VARIANT / "run.py", kit / "clips.npy"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    expected = json.loads((kit / "kit.json").read_text())["variants"][0]["expected"]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, rel=1e-4)


def test_bench_is_written_for_old_pythons(kit: Path) -> None:
    """What a Raspberry Pi or a hospital's PC has: its syntax is that of Python 3.8."""
    import ast

    ast.parse((kit / "bench.py").read_text(), feature_version=(3, 8))
