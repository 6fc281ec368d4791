"""An OUT that a stranger made, or changed: what is asked of it is answered, or refused in a sentence, and nothing
outside of it is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.evidence_runs import VARIANTS, key_of, make_run
from support.runs import main_here

from qray.atomic import write_parquet
from qray.graph.store import Store

FEW = {name: VARIANTS[name] for name in ("fp32", "ptq-openvino", "ptq-inductor", "qat-inductor")}
#: What is told of a run in half a second; the report is made of the same evidence.
COMMANDS = ("pick", "show", "card", "table")
VALUES = (None, True, 0, -1, 1e308, 10**30, "x", "", "../../etc/passwd", [], {}, [[]], {"a": 1}, "\x1b[31m<b>|`")
#: What is no JSON, or none of a record.
TEXTS = ("", "{", "[" * 100_000, '{"a":NaN}', "1e999", "[]", "null", "9" * 5000, "\0", '{"files": ["../../x"]}')


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    make_run(out, variants=FEW, clips=40, verdict={"bootstrap": 100}, table=True)
    return out


@pytest.fixture
def out(run: Path, tmp_path: Path) -> Path:
    """A copy, to be changed by a stranger."""
    return Path(shutil.copytree(run, tmp_path / "out"))


def places(node: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key and item of a record, and of what is in it; of long lists the first ones."""
    within = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
    for key, value in within:
        yield (*at, key)
        yield from places(value, (*at, key))


def ask(command: str, out: Path) -> None:
    """It answers, or says a sentence."""
    done = main_here(*(("run", "table") if command == "table" else (command,)), out)
    said = done.stdout + done.stderr
    assert done.code in (0, 1, 2, 3), said
    assert [word for word in ("a fault of qray", "Traceback", "\x1b", "root:") if word in said] == [], said


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_one_other_thing_in_any_record_costs_no_more_than_a_sentence(run: Path, draw: st.DataObject) -> None:
    files = sorted([run / "run.json", *(run / "units").glob("*.json")])
    path = draw.draw(st.sampled_from(files) | st.just(run / "run.json"), label="file")
    whole = path.read_text(encoding="utf-8")
    record = json.loads(whole)
    *within, last = draw.draw(st.sampled_from(list(places(record))), label="place")
    place = record
    for key in within:
        place = place[key]
    if draw.draw(st.booleans(), label="gone"):
        del place[last]
    else:
        place[last] = draw.draw(st.sampled_from(VALUES), label="value")
    try:
        path.write_text(json.dumps(record), encoding="utf-8")
        ask(draw.draw(st.sampled_from(COMMANDS), label="command"), run)
    finally:
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize("name", ["run.json", f"units/build-{key_of('build', 'fp32')}.json", "units/phases.json"])
def test_what_is_no_record_costs_no_more_than_a_sentence(out: Path, name: str, text: str) -> None:
    (out / name).write_text(text, encoding="utf-8")
    ask("show", out)
    ask("pick", out)


def evaluation(out: Path, variant: str = "ptq-openvino") -> tuple[Path, dict[str, Any]]:
    path = out / "units" / f"evaluate-{key_of('evaluate', variant)}.json"
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("leads", ["../elsewhere.parquet", "absolute", "link"])
def test_predictions_that_lie_elsewhere_are_not_read(out: Path, tmp_path: Path, leads: str) -> None:
    path, record = evaluation(out)
    elsewhere = tmp_path / "elsewhere.parquet"
    shutil.copy(out / record["files"][0], elsewhere)
    if leads == "link":
        (out / record["files"][0]).unlink()
        (out / record["files"][0]).symlink_to(elsewhere)
    else:
        record["files"] = [str(elsewhere) if leads == "absolute" else leads]
        path.write_text(json.dumps(record), encoding="utf-8")
    done = main_here("pick", out)
    assert "ptq-openvino: failed: no accuracy: " in done.stdout, done.stdout + done.stderr
    assert "leads out of" in done.stdout
    assert Store(out).get("evaluate", key_of("evaluate", "ptq-openvino")) is None, "a run that goes on would use it"


@pytest.mark.parametrize("kind", ["pipe", "schema", "types", "text"])
def test_predictions_that_are_none_are_a_reason(out: Path, kind: str) -> None:
    path = out / evaluation(out)[1]["files"][0]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("PAR1 no table PAR1", encoding="ascii")
    else:
        columns = {"clip": ["a"], "target": ["x"], "prediction": [[1.0]]} if kind == "types" else {"clip": [1]}
        write_parquet(path, pa.table(columns))
    done = main_here("pick", out)
    assert "ptq-openvino: failed: no accuracy: " in done.stdout, done.stdout + done.stderr
