"""The recipes for contributors, followed word for word on a copy of the package, from outside of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / ".github" / "CONTRIBUTING.md"
pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="no clone: a source archive leaves .github out")


def follow(recipe: str, tmp_path: Path) -> Path:
    """A copy of the package to which a recipe was applied: each block names a file, or a place in one that is there."""
    (text,) = re.findall(rf"(?ms)^## {recipe}\n(.*?)(?=^## |\Z)", GUIDE.read_text(encoding="utf-8"))
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows")
    blocks = re.findall(r"(?ms)^```python\n# (\S+?)(?:, after: ([^\n]*))?\n(.*?)^```", text)
    assert blocks
    for name, anchor, lines in blocks:
        path = tmp_path / name
        if not anchor:
            assert not path.exists()
            path.write_text(lines, encoding="utf-8")
            continue
        there = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [number for number, line in enumerate(there) if line.strip() == anchor]
        (at,) = whole or [number for number, line in enumerate(there) if line.lstrip().startswith(anchor)]
        path.write_text("".join([*there[: at + 1], lines, *there[at + 1 :]]), encoding="utf-8")
    return tmp_path / "src"


def run(package: Path, code: str, *arguments: object) -> str:
    """What a fresh process prints that imports the copy."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), str(ROOT / "tests")]), "COLUMNS": "300"}
    check = f"import qray; assert qray.__path__[0].startswith({str(package)!r}), qray.__path__\n"
    done = subprocess.run(
        [sys.executable, "-c", check + code, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_column_is_in_the_table_the_terminal_the_report_and_the_legend(tmp_path: Path) -> None:
    package = follow("A column", tmp_path)
    code = """
import sys
from pathlib import Path
from support.evidence_runs import VARIANTS, make_run
from qray.cli import app
import pyarrow.parquet as pq

few = {name: VARIANTS[name] for name in ("fp32", "ptq-openvino")}
out = make_run(Path(sys.argv[1]), variants=few, table=True)
table = pq.read_table(out / "results.parquet").to_pylist()
row = next(row for row in table if row["variant"] == "fp32")
assert abs(row["clips_per_s"] * row["latency_p50_ms"] / 1000 - 1) < 1e-9
for command in (["columns"], ["show", str(out)], ["report", str(out)]):
    app(command, standalone_mode=False)
assert "clips/s" in (out / "report.md").read_text(encoding="utf-8")
"""
    said = run(package, code, tmp_path / "out")
    assert "clips per second at the median latency" in said
    assert "clips/s" in said


def test_an_engine_is_a_study_s_to_name_and_builds_what_it_says(tmp_path: Path) -> None:
    package = follow("An engine", tmp_path)
    code = """
import sys
from pathlib import Path
import numpy as np
import torch
from support.networks import realistic_model, request, smooth_clips
from qray.doctor import ENGINES
from qray.study import Study
from qray.engines.registry import build_artifact, load_artifact, missing_requirement

listed = [{"name": engine, "method": "fp32", "engine": engine} for engine in ("eager", "by-clip")]
variant = Study.model_validate({"name": "s", "variants": listed}).variants[1]
assert missing_requirement(variant) is None and "by-clip" in ENGINES
model = realistic_model(passes=1)
artifact = build_artifact(request(variant, model), "key", Path(sys.argv[1]))
clips = smooth_clips(3, seed=1)
with torch.no_grad():
    assert np.allclose(load_artifact(artifact)(clips.numpy()), model(clips).numpy(), atol=1e-3)
"""
    run(package, code, tmp_path / "artifact")


def test_a_backbone_is_quantized_like_any_other(tmp_path: Path) -> None:
    package = follow("A backbone", tmp_path)
    code = """
import sys
from pathlib import Path
from support.networks import request, smooth_clips
from qray.model.regressor import build_regressor
from qray.study import Model, Variant
from qray.engines.registry import build_artifact, load_artifact

model = build_regressor(Model(backbone="two-layers", width=16), 55.0, 12.0, seed=0).eval()
for method, engine in (("fp32", "eager"), ("ptq", "onnxruntime"), ("ptq", "openvino")):
    variant = Variant(name=f"{method}-{engine}", method=method, engine=engine)
    built = build_artifact(request(variant, model), variant.name, Path(sys.argv[1]) / variant.name)
    assert load_artifact(built, allow_code=True)(smooth_clips(2, seed=1).numpy()).shape == (2,)
    print(variant.name, round(built.built.int8_mac_share, 2), sorted(built.built.notes))
"""
    said = run(package, code, tmp_path)
    shares = dict(line.split()[:2] for line in said.splitlines())
    assert float(shares["fp32-eager"]) == 0
    assert min(float(shares["ptq-onnxruntime"]), float(shares["ptq-openvino"])) > 0.9


def test_a_kind_of_unit_is_planned_keyed_and_wanted_by_its_stage(tmp_path: Path) -> None:
    package = follow("A kind of unit", tmp_path)
    code = """
import sys
from pathlib import Path
from support.graphs import manifest_of, only
from support.networks import realistic_model
from qray.graph.missing import lacking
from qray.graph.store import Store
from qray.model.training import dump_checkpoint
from qray.study_files import load_study
from qray.units.plan import study_units, units_of_stage
from qray.units.weighing import weigh

graph = study_units(load_study("quickstart"), manifest_of({"TRAIN": 4, "VAL": 2, "TEST": 2}))
wanted = lacking(graph, units_of_stage(graph, "weigh"), Store(Path(sys.argv[1])))
assert [unit.kind for unit in wanted] == ["train", "evaluate", "weighing"], wanted
assert only(graph, "weighing").depends["train"] is only(graph, "train")
assert weigh(dump_checkpoint({"model": realistic_model(passes=1).state_dict()})) > 1000
"""
    run(package, code, tmp_path / "out")
