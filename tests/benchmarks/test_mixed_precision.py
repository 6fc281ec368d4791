"""Mixed precision against NNCF's accuracy control: passes over VAL that each takes to the same bound, and what comes of
them.

Both quantize the same network with the same calibration clips and settings, and both are told the same: the upper end
of the interval of the loss of MAE on VAL, and a loss that no bound allows where a guardrail is broken. A pass over all
of VAL is an evaluation (FP32's own is not counted); what they rank layers by is counted in clips.

Run: pytest tests/benchmarks/test_mixed_precision.py -s. Of a trained network instead: python
tests/benchmarks/test_mixed_precision.py OUT WITHIN, where OUT is of a finished run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import TINY_CLIP, realistic_model, smooth_clips

from qray.engines import nncf_quantize, openvino
from qray.engines.artifact import BuildRequest
from qray.engines.sensitivity import layered, measure_layers
from qray.engines.tail import PREFIX
from qray.engines.torch_program import runner as eager
from qray.judge.clips import clips_of
from qray.judge.comparison import MIN_CLIPS
from qray.judge.mixed import judge_mix
from qray.judge.sensitivity import summarize
from qray.study import Study, Variant
from qray.units.prefixes import Tried, next_round, ranking

VARIANT = Variant(name="mixed", method="ptq", engine="openvino")
SENSITIVITY_CLIPS = 32
BUDGET = 40


@dataclass
class Task:
    """A network, the clips that calibrate it, and the labelled clips of VAL that a mix is judged on."""

    request: BuildRequest
    study: Study
    clips: np.ndarray
    target: np.ndarray
    within: float = 1.0
    fp32: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        predict = eager(self.request.model, 1)
        self.fp32 = np.concatenate([np.asarray(predict(clip[None]), np.float64) for clip in self.clips])

    def judge(self, predicted: np.ndarray, at: np.ndarray | None = None) -> dict[str, Any]:
        """What is said of predictions of all clips, or of some."""
        at = np.arange(len(self.target)) if at is None else at
        names = [str(one) for one in at]
        own, reference = (clips_of(names, self.target[at], one) for one in (predicted, self.fp32[at]))
        return judge_mix(own, reference, {}, self.study, self.within)


@dataclass
class Found:
    """What came of a search: passes over VAL, clips that layers were ranked by, convolutions left in FP32, seconds, and
    the judgement on what it ended with."""

    evaluations: int
    ranking_clips: int
    fp32: list[str]
    seconds: float
    verdict: dict[str, Any]


def predictions(compiled: Any, clips: np.ndarray) -> np.ndarray:
    """Of an OpenVINO model, clip by clip."""
    run = openvino._runner(compiled)
    return np.concatenate([np.asarray(run(clip[None]), np.float64) for clip in clips])


def quantized(task: Task, keep_fp32: tuple[str, ...]) -> Any:
    """The compiled model with layers kept in FP32, as `openvino.build` makes it."""
    from qray.engines.layers import resolve_keep_fp32

    model, layers = openvino._named_model(task.request)
    kept = openvino._numbered(layers, resolve_keep_fp32(layers, keep_fp32, unweighted=True))
    return openvino.compile_for_cpu(nncf_quantize.quantize(task.request, model, kept), "ptq", 1)


def mixed(task: Task) -> Found:
    """Our search, in one process."""
    started, clips = time.time(), torch.from_numpy(task.clips[:SENSITIVITY_CLIPS])
    network = layered(replace(task.request, variant=VARIANT.model_copy(update={"engine": "inductor"})))
    layers = tuple(network.switches)
    measured = measure_layers(network, [(np.arange(len(clips)), clips)], layers, len(clips))
    ranked = ranking(summarize([measured], task.target[: len(clips)], 500, 0), unweighted=True)
    tried: list[Tried] = []
    judged: dict[tuple[str, ...], dict[str, Any]] = {}
    while kept := next_round(ranked, tried, BUDGET):
        for each in kept:
            judged[each] = found = task.judge(predictions(quantized(task, each), task.clips))
            tried.append(Tried(each, found["holds"], found["delta_high"] / task.within))
            print(f"  {len(each)} of {len(ranked)} layers in FP32: {found['why'] or 'holds'}", flush=True)
    best = min((one.kept for one in tried if one.holds), key=len, default=tried[-1].kept)
    # Both whole passes, and two partial ones for each layer, of each clip.
    seconds, fp32 = time.time() - started, in_fp32(task, quantized(task, best))
    return Found(len(tried), (2 + 2 * len(layers)) * len(clips), fp32, seconds, judged[best])


def in_fp32(task: Task, compiled: Any) -> list[str]:
    """Convolutions that run in FP32."""
    _, layers = openvino._named_model(task.request)
    names = {layer.name for layer in layers if layer.weighted and not layer.tail}
    return sorted(names - openvino.executed_in(compiled, {"i8", "u8"}, names)[0])


def controlled(task: Task) -> Found:
    """NNCF's accuracy control."""
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    started, counts = time.time(), []

    def validate(compiled: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        at = np.array([int(item[0]) for item in items])
        counts.append(len(at))
        predicted = predictions(compiled, task.clips[at])
        losses = np.abs(predicted - task.target[at]) - np.abs(task.fp32 - task.target)[at]
        if len(at) < MIN_CLIPS:
            return -float(losses.mean()), (-losses).tolist()
        found = task.judge(predicted, at)
        metric = -found["delta_high"] - (10 * task.within if found["why"] and found["delta_high"] < task.within else 0)
        return metric, (-losses).tolist()

    model, _ = openvino._named_model(task.request)
    tail = [name for node in model.get_ordered_ops() if (name := node.get_friendly_name()).startswith(PREFIX)]
    batches = [batch.numpy() for batch in task.request.calibration]
    made = nncf.quantize_with_accuracy_control(
        model.clone(), nncf.Dataset(batches), nncf.Dataset([(at, clip[None]) for at, clip in enumerate(task.clips)],
                                                           lambda item: item[1]),
        validate, max_drop=task.within, drop_type=nncf.DropType.ABSOLUTE, subset_size=len(batches),
        preset=nncf.QuantizationPreset.MIXED, ignored_scope=nncf.IgnoredScope(names=tail, validate=False),
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if task.request.reduce_range else OverflowFix.DISABLE,
            activations_range_estimator_params=nncf_quantize.range_estimator(task.request.variant.observer),
            disable_bias_correction=True,
        ),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=SENSITIVITY_CLIPS, num_ranking_workers=1
        ),
    )  # fmt: skip
    seconds, compiled = time.time() - started, openvino.compile_for_cpu(made, "ptq", 1)
    verdict = task.judge(predictions(compiled, task.clips))
    whole = sum(count == len(task.clips) for count in counts)
    # The first is FP32's own, which is not counted on either side.
    return Found(whole - 1, sum(count for count in counts if count < len(task.clips)),
                 in_fp32(task, compiled), seconds, verdict)  # fmt: skip


def show(name: str, found: Found) -> None:
    delta, ends = found.verdict["delta_high"], found.verdict["why"] or "holds"
    print(f"{name}: {found.evaluations} evaluations on VAL, {found.ranking_clips} clips to rank layers, "
          f"{len(found.fp32)} convolutions in FP32, MAE to {delta:+.3f}: {ends}; {found.seconds:.0f} s", flush=True
    )  # fmt: skip


@pytest.fixture(scope="module")
def both() -> tuple[Found, Found]:
    """Of a network that nothing was trained of, bound to half of what plain PTQ loses."""
    calibration = [smooth_clips(4, seed=200 + at) for at in range(8)]
    request = BuildRequest(VARIANT, realistic_model(), TINY_CLIP, calibration)
    study = Study.model_validate({
        "name": "s", "variants": [{"name": "fp32", "method": "fp32", "engine": "eager"}],
        "verdict": {"thresholds": [], "margin": 10.0, "bootstrap": 500},
    })  # fmt: skip
    task = Task(request, study, smooth_clips(64, seed=7).numpy(), np.zeros(64))
    task.target = task.fp32 + np.random.default_rng(0).normal(0, 0.1, 64)
    task.within = 0.5 * task.judge(predictions(quantized(task, ()), task.clips))["delta_high"]
    return of_both(task)


def of_both(task: Task) -> tuple[Found, Found]:
    found = mixed(task), controlled(task)
    print()
    for name, one in zip(("mixed", "NNCF"), found, strict=True):
        show(name, one)
    return found


def test_it_takes_fewer_evaluations_than_accuracy_control(both: tuple[Found, Found]) -> None:
    ours, theirs = both
    assert ours.evaluations < theirs.evaluations


def trained(out: Path, within: float) -> Task:
    """The network, the clips and the study of a finished run."""
    from qray.data.decode import decode_frames, evaluation_indices
    from qray.graph.store import Store
    from qray.judge.index import read_index
    from qray.study_files import load_study
    from qray.units.clips import calibration_clips
    from qray.units.data_set import data_folder, load_manifest
    from qray.units.work import model_from_state

    study, store = load_study(str(out / "study.yaml")), Store(out)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = load_manifest(Store(Path(scratch)), data_folder(study.data), study.data)
    weights = store.latest_checkpoint(read_index(out).run["train"])
    assert weights is not None
    spec = study.clip.single_window()

    def decoded(rows: Any) -> np.ndarray:
        return np.stack([
            decode_frames(path, evaluation_indices(frames, spec), spec.image_size)[0]
            for path, frames in zip(rows["path"], rows["n_frames"], strict=True)
        ])  # fmt: skip

    observed = decoded(calibration_clips(study, manifest))
    calibration = list(torch.from_numpy(observed).split(study.calibration.batch_size))
    val = manifest.split("VAL")
    request = BuildRequest(VARIANT, model_from_state(study.model, weights), study.clip, calibration)
    return Task(request, study, decoded(val), val["target"].to_numpy(np.float64), within)


if __name__ == "__main__":
    of_both(trained(Path(sys.argv[1]), float(sys.argv[2])))
