"""Mixed precision: what it depends on, and the search on a real network, quantized, predicted and timed here."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.graphs import manifest_of
from support.local_backend import LocalBackend
from support.networks import request, smooth_clips, two_stages
from support.runs import unit_times

from qray.engines.artifact import read_artifact
from qray.engines.registry import build_artifact, load_artifact
from qray.engines.torch_program import runner as eager
from qray.errors import QrayError
from qray.graph.missing import lacking
from qray.graph.runner import Runner
from qray.graph.store import Store
from qray.graph.unit import Graph, Task, Unit
from qray.judge.index import unit_files
from qray.measure.isa import Machine
from qray.study import Study, Variant
from qray.units.context import RunContext
from qray.units.mix import mix_unit, mixed_build_unit
from qray.units.plan import study_units

FP32 = {"name": "fp32", "method": "fp32", "engine": "eager"}
PLAIN = {"name": "ptq", "method": "ptq", "engine": "onnxruntime", "observer": "minmax"}
COUNTS = {"TRAIN": 20, "VAL": 40, "TEST": 12}
LAYERS = (
    "conv1", *(f"layer{stage}.{block}.conv{at}" for stage in (1, 2) for block in (0, 1) for at in (1, 2)),
    "layer2.0.downsample.0",
)  # fmt: skip
VAL = smooth_clips(COUNTS["VAL"], seed=7).numpy()
#: torch.export is for one thread at a time.
EXPORT = threading.Lock()
FP32_PREDICTIONS = np.asarray(eager(two_stages(), 1)(VAL), np.float64)


def study(*mixed: Mapping[str, Any], verdict: Mapping[str, Any] | None = None, **more: Any) -> Study:
    return Study.model_validate(
        {"name": "s", "variants": [FP32, PLAIN, *mixed], "verdict": {"bootstrap": 500} | dict(verdict or {}),
         "measure": {"seconds": 0.05, "min_calls": 4, "blocks": 2, "warmup_calls": 1}} | more
    )  # fmt: skip


def mixed(name: str = "mixed", **accuracy: Any) -> dict[str, Any]:
    return PLAIN | {"name": name, "accuracy": accuracy}


def plan(*variants: Mapping[str, Any], **more: Any) -> Graph:
    return study_units(study(*variants, **more), manifest_of(COUNTS), Machine("avx2", bf16=False))


def test_no_other_variant_of_a_study_with_mixed_precision_has_another_key() -> None:
    with_it, without = plan(mixed()), plan()
    for kind in ("train", "build", "evaluate"):
        mine = {name: unit.key for name, unit in with_it.of(kind).items()}
        assert {name: unit.key for name, unit in without.of(kind).items()}.items() <= mine.items()


def test_a_study_without_sensitivity_measures_the_layers_as_the_variant_quantizes_them() -> None:
    (layers,) = plan(mixed()).of("sensitivity").values()
    assert layers.depends["settings"]["observer"] == "minmax"


def test_the_studys_own_layers_are_those_that_the_report_shows() -> None:
    graph = plan(mixed(), sensitivity={"observer": "histogram"})
    own = graph.one("sensitivity")
    assert own is not None
    assert (own.depends["settings"]["observer"], len(graph.of("sensitivity"))) == ("histogram", 2)


def test_layers_that_are_measured_alike_are_measured_once() -> None:
    assert len(plan(mixed(), mixed("other", within=0.5), sensitivity={"observer": "minmax"}).of("sensitivity")) == 1


@pytest.mark.parametrize("changes", [
    {"verdict": {"margin": 0.5}}, {"verdict": {"guardrails": {"tied": 2}}}, {"parity": {"max_kernel_share": 0.4}},
    {"measure": {"threads": [2]}}, {"calibration": {"clips": 3}},
], ids=str)  # fmt: skip
def test_what_a_mix_is_judged_by_is_in_its_key_and_in_that_of_its_build(changes: dict[str, Any]) -> None:
    one, other = plan(mixed()), plan(mixed(), **changes)
    for kind in ("mix", "build", "evaluate"):
        assert one.of(kind)["mixed"].key != other.of(kind)["mixed"].key


def test_the_same_bound_said_as_a_number_is_the_same_search() -> None:
    assert plan(mixed()).of("mix")["mixed"].key == plan(mixed(within=1.0)).of("mix")["mixed"].key


def test_a_stage_that_builds_searches(tmp_path: Path) -> None:
    graph = plan(mixed())
    found = {unit.kind for unit in lacking(graph, [graph.of("build")["mixed"]], Store(tmp_path))}
    assert found == {"train", "layers", "sensitivity", "build", "predict", "mix"}


@dataclass
class Work(Task):
    """What is done in a thread, and the record that comes of its value."""

    work: Callable[[], Any]
    record: Callable[[Any], dict[str, Any]] = dict

    def start(self, unit: Unit, run: Any) -> Any:
        return run.backend.submit(unit, self.work)

    def finish(self, unit: Unit, run: Any, value: Any) -> dict[str, Any]:
        return self.record(value)


@dataclass
class Search:
    """A search on half a tiny ResNet-18: real artifacts, built, tried and timed, with threads in place of Ray's tasks
    and clips that are given to them. refused: numbers of layers in FP32 that the engine will not build."""

    out: Path
    within: float
    refused: frozenset[int] = frozenset()
    built: list[tuple[str, ...]] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store(self.out)
        self.variant = Variant.model_validate(mixed(within=self.within))
        self.study = study(mixed(within=self.within), verdict={"thresholds": []})
        self.manifest = manifest_of(COUNTS)
        self.val = self.manifest.split("VAL")
        self.val["target"] = FP32_PREDICTIONS + np.random.default_rng(0).normal(0, 0.1, COUNTS["VAL"])
        layers = [{"layer": name, "macs": 10, "alone": {"sqnr_db": 30.0 + at}} for at, name in enumerate(LAYERS)]
        sensitivity = Unit("sensitivity", "layers", Work(lambda: {"layers": layers}), {})
        reference = Unit("predict", "fp32", Work(lambda: FP32_PREDICTIONS, self._saved("fp32")), {})
        self.mix = mix_unit(self.study, self.variant, "avx2", sensitivity, reference, self._build, self._predict)
        self.units = [sensitivity, reference, self.mix, mixed_build_unit(self.variant, "avx2", self.mix)]

    def _build(self, variant: Variant) -> Unit:
        def build() -> dict[str, Any]:
            self.built.append(variant.keep_fp32)
            if len(variant.keep_fp32) in self.refused:
                raise QrayError("the engine runs 1 of 10 convolutions in FP32")
            folder = self.store.artifact_folder(unit.key)
            with EXPORT:
                return {
                    "artifact": build_artifact(
                        replace(request(variant, two_stages()), isa="avx2"), unit.key, folder
                    ).facts
                }

        unit = Unit("build", variant.name, Work(build), {"variant": variant.settings()})
        return unit

    def _predict(self, build: Unit) -> Unit:
        def predict() -> np.ndarray:
            return load_artifact(self.store.artifact_folder(build.key))(VAL)

        unit = Unit("predict", build.name, Work(predict, lambda value: self._saved(unit.key)(value)), {"build": build})
        return unit

    def _saved(self, key: str) -> Callable[[np.ndarray], dict[str, Any]]:
        def save(predicted: np.ndarray) -> dict[str, Any]:
            return {"files": [self.store.relative(self.store.save_predictions(key, "VAL", self.val, predicted, 0))]}

        return save

    def run(self, killed_after: int | None = None) -> Runner:
        """To its end, or killed when so many mixes have been predicted."""

        def on_end() -> None:
            if killed_after is not None and len(unit_files(self.out, "predict")) > killed_after:
                raise KeyboardInterrupt

        backend = LocalBackend(3)
        runner = Runner(self.store, backend, Console(file=io.StringIO()), on_end=on_end)
        runner.context = RunContext(self.study, self.manifest, self.store, backend, runner)  # type: ignore[arg-type]
        runner.run(lacking(Graph(self.units), self.units, self.store))
        return runner

    @property
    def record(self) -> dict[str, Any]:
        return self.store.record(self.mix) or {}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One OUT for all searches: what one of them has built and predicted, no other does again."""
    return tmp_path_factory.mktemp("mix")


@pytest.fixture(scope="module")
def plain(out: Path) -> dict[str, Any]:
    """What plain PTQ is found to lose, by a search that it ends."""
    search = Search(out, within=100.0)
    search.run()
    return search.record


@pytest.fixture(scope="module")
def searched(out: Path, plain: dict[str, Any]) -> Search:
    """A search for less than that, which was killed after the next mix, and went on."""
    search = Search(out, within=0.95 * plain["tried"][0]["delta_high"])
    with pytest.raises(KeyboardInterrupt):
        search.run(killed_after=2)
    search.kept = unit_times(out)
    search.run()
    return search


def test_plain_quantization_that_holds_is_taken_as_it_is(plain: dict[str, Any]) -> None:
    assert (plain["keep_fp32"], plain["evaluations"], plain["layers"]) == ([], 1, len(LAYERS))


def test_what_is_chosen_holds_on_val_and_plain_quantization_does_not(searched: Search) -> None:
    tried = {tuple(one["keep_fp32"]): one for one in searched.record["tried"]}
    chosen = tried[tuple(searched.record["keep_fp32"])]
    assert (chosen["holds"], tried[()]["holds"]) == (True, False)
    assert chosen["delta_high"] < searched.within <= tried[()]["delta_high"]


def test_the_fastest_of_those_that_hold_is_chosen(searched: Search) -> None:
    holding = [one for one in searched.record["tried"] if one["holds"]]
    chosen = next(one for one in holding if one["keep_fp32"] == searched.record["keep_fp32"])
    assert len(holding) == 1 or chosen["latency_p50_ms"] == min(one["latency_p50_ms"] for one in holding)


def test_a_search_that_was_killed_repeats_nothing(searched: Search) -> None:
    assert any(name.startswith("predict-") for name in searched.kept)
    assert searched.kept.items() <= unit_times(searched.out).items()


def test_the_artifact_is_that_of_the_mix_under_the_variants_own_name(searched: Search) -> None:
    build, chosen = searched.units[-1], searched.record["build"]
    artifact = read_artifact(searched.store.artifact_folder(build.key))
    assert (artifact.variant.name, artifact.key) == ("mixed", build.key)
    assert list(artifact.variant.keep_fp32) == searched.record["keep_fp32"]
    own, of_mix = (load_artifact(searched.store.artifact_folder(key))(VAL[:2]) for key in (build.key, chosen))
    np.testing.assert_array_equal(own, of_mix)


def test_its_record_has_what_rows_are_made_of(searched: Search) -> None:
    build = searched.units[-1]
    made, chosen = searched.store.record(build) or {}, searched.store.get("build", searched.record["build"]) or {}
    assert made["artifact"]["size_bytes"] == chosen["artifact"]["size_bytes"]
    assert made["artifact"]["notes"]["mixed"] == {
        name: searched.record[name] for name in ("keep_fp32", "layers", "evaluations")
    }
    assert made["search_s"] >= chosen["seconds"]


def test_the_layers_of_the_mix_run_in_fp32(searched: Search) -> None:
    made = searched.store.record(searched.units[-1]) or {}
    assert made["artifact"]["notes"]["int8_layers"] == len(LAYERS) - len(searched.record["keep_fp32"])


def test_a_mix_that_the_engine_will_not_build_does_not_hold_and_where_nothing_does_the_best_is_named(
    out: Path, plain: dict[str, Any]
) -> None:
    search = Search(out, within=1e-9, refused=frozenset(range(1, len(LAYERS))))
    said = search.run().results[search.units[-1].key].reason or ""
    assert len(set(search.built)) == len(search.built) > 0
    assert said.startswith("no mix of precisions holds on VAL, of 1 evaluated: the best, with 0 of 10 layers in FP32: ")
    assert said.endswith("and 1e-09 is put up with")
