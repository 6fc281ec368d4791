"""Mixed precision: the layers that stay in FP32 so that margin and guardrails hold on VAL at the least latency."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qray.atomic import atomic_path
from qray.engines.artifact import read_artifact, write_artifact_json
from qray.engines.catalog import ENGINES
from qray.engines.registry import missing_requirement
from qray.errors import QrayError
from qray.graph.unit import Resources, Skipped, Task, Unit
from qray.judge.clips import read_predictions
from qray.judge.mixed import judge_mix
from qray.measure.latency import Latency
from qray.point import CPU, Point
from qray.study import Sensitivity, Study, Variant
from qray.units.context import RunContext
from qray.units.latency import latency_unit
from qray.units.prefixes import Kept, Tried, next_round, ranking

#: What a mix is tried by: its build, and its predictions of VAL.
Candidate = tuple[Unit, Unit]


def sensitivity_of(study: Study, variant: Variant) -> Sensitivity:
    """The analysis that orders the layers of a variant: the study's, or the default one, as the variant quantizes."""
    settings = study.sensitivity or Sensitivity()
    return settings.model_copy(update={"weight_bits": variant.weight_bits, "observer": variant.observer})


def _measured_at(study: Study) -> Point:
    """Where mixes that hold are timed: the first point on the CPU that the study names."""
    return next(iter(study.points(CPU)), Point(threads=1, batch=1))


def mix_unit(
    study: Study, variant: Variant, isa: str, sensitivity: Unit, reference: Unit, build: Callable[[Variant], Unit],
    predict: Callable[[Unit], Unit],
) -> Unit:  # fmt: skip
    """The search for the layers that a variant keeps in FP32. reference: FP32's predictions of VAL; build and predict:
    what makes the units of a candidate."""

    def candidate(kept: Kept) -> Candidate:
        own = {"name": f"{variant.name}.fp32-{len(kept)}", "keep_fp32": kept, "accuracy": None}
        built = build(variant.model_copy(update=own))
        return built, predict(built)

    assert variant.accuracy is not None
    within = study.verdict.margin if variant.accuracy.within == "margin" else variant.accuracy.within
    at = _measured_at(study)
    depends = {
        # Its key says all that candidates are built of.
        "plain": candidate(())[1].key, "sensitivity": sensitivity, "reference": reference, "within": within,
        "evaluations": variant.accuracy.evaluations, "verdict": study.verdict,
        "max_kernel_share": study.parity.max_kernel_share, "measure": at.depends() | study.measure.of_a_point(),
    }  # fmt: skip
    task = Mix(variant, isa, sensitivity, reference, candidate, within, variant.accuracy.evaluations)
    return Unit("mix", variant.name, task, depends, title=f"mix precisions of {variant.name}")


def mixed_build_unit(variant: Variant, isa: str, mix: Unit) -> Unit:
    """The artifact of the mix that was chosen, as the variant's own."""
    return Unit("build", variant.name, Adopt(variant, isa, mix), {"mix": mix})


@dataclass
class Mix(Task):
    """The driver's own: it has candidates built, evaluated and measured side by side, round by round."""

    variant: Variant
    isa: str
    sensitivity: Unit
    reference: Unit
    candidate: Callable[[Kept], Candidate]
    within: float
    evaluations: int
    asked: tuple[Unit, ...] = ()
    resources = Resources(slots=0)

    def impossible(self) -> str | None:
        return missing_requirement(self.variant, self.isa)

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.done()

    def finish(self, unit: Unit, run: RunContext, value: None) -> dict[str, Any] | None:
        able = ENGINES[self.variant.engine].keeps_unweighted
        layers = ranking(run.store.record(self.sensitivity) or {}, able)
        tried: list[dict[str, Any]] = []
        while kept := next_round(layers, [_tried(one, self.within) for one in tried], self.evaluations):
            candidates = [self.candidate(each) for each in kept]
            if self._ask([of for each in candidates for of in each], run):
                return None
            tried += [self._judged(*each, run) for each in zip(kept, candidates, strict=True)]
        if not any(one["holds"] for one in tried):
            raise QrayError(_nothing_holds(tried, len(layers)))
        if (chosen := self._fastest(tried, run)) is None:
            return None
        kept, count = chosen["keep_fp32"], _evaluations(tried)
        run.runner.say(
            f"{self.variant.name}: {len(kept)} of {len(layers)} layers stay in FP32 ({', '.join(kept) or 'none'}), "
            f"found by {count} evaluations on VAL"
        )
        return {
            "keep_fp32": kept, "layers": len(layers), "evaluations": count,
            "within": self.within, "build": chosen["build"], "tried": tried,
            "files": [run.store.relative(run.store.artifact_folder(chosen["build"]))],
            "search_s": sum(one["seconds"] for one in tried),
        }  # fmt: skip

    def _ask(self, units: Sequence[Unit], run: RunContext) -> bool:
        """Have units run that have not ended; whether there are any."""
        self.asked = tuple(unit for unit in units if run.runner.ended(unit) is None)
        for unit in self.asked:
            run.runner.add(unit)
        return bool(self.asked)

    def _judged(self, kept: Kept, candidate: Candidate, run: RunContext) -> dict[str, Any]:
        """A mix as its record has it. One that an engine will not build is one that does not hold."""
        build, predict = (run.runner.ended(unit) for unit in candidate)
        found = {"keep_fp32": list(kept), "build": candidate[0].key, "seconds": 0.0, "holds": False, "delta_high": None}
        assert build is not None
        assert predict is not None
        if build.status == "skipped":
            raise Skipped(build.reason)
        if predict.status != "ok":
            return found | {"why": predict.reason}
        reference = run.store.record(self.reference) or {}
        own, fp32 = (read_predictions(run.store.out, one["files"][0]) for one in (predict.record, reference))
        found["seconds"] = build.record["seconds"] + predict.record["seconds"]
        return found | judge_mix(own, fp32, build.record["artifact"]["notes"], run.study, self.within)

    def _fastest(self, tried: Sequence[dict[str, Any]], run: RunContext) -> dict[str, Any] | None:
        """The fastest of those that hold, measured interleaved; None while that is still to be done."""
        holding = [one for one in tried if one["holds"]]
        if len(holding) == 1:
            return holding[0]
        builds = [self.candidate(tuple(one["keep_fp32"]))[0] for one in holding]
        measure = latency_unit(run.study.measure, _measured_at(run.study), builds)
        name = f"mixes of {self.variant.name}"
        measure = replace(measure, name=name, title=f"measure latency of {len(builds)} {name}")
        if self._ask([measure], run):
            return None
        ended = run.runner.ended(measure)
        assert ended is not None
        if ended.status != "ok":
            raise QrayError(f"{measure.title}: {ended.reason}")
        for one in holding:
            one["latency_p50_ms"] = Latency(**ended.record["latency"][one["build"]]).percentile(50)
        return min(holding, key=lambda one: (one["latency_p50_ms"] is None, one["latency_p50_ms"]))


@dataclass
class Adopt(Task):
    """A copy, so that all that comes after has an artifact like any other."""

    variant: Variant
    isa: str
    mix: Unit
    resources = Resources(slots=0)

    def impossible(self) -> str | None:
        return missing_requirement(self.variant, self.isa)

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.done()

    def finish(self, unit: Unit, run: RunContext, value: None) -> dict[str, Any]:
        mix = run.store.record(self.mix) or {}
        source, folder = run.store.artifact(mix["build"]), run.store.artifact_folder(unit.key)
        artifact, facts = read_artifact(source), {name: mix[name] for name in ("keep_fp32", "layers", "evaluations")}
        built = replace(artifact.built, notes=artifact.built.notes | {"mixed": facts})
        variant = self.variant.model_copy(update={"keep_fp32": tuple(mix["keep_fp32"]), "accuracy": None})
        with atomic_path(folder) as temporary:
            shutil.copytree(source, temporary)
            write_artifact_json(replace(artifact, folder=temporary, variant=variant, key=unit.key, built=built))
        files = [run.store.relative(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        made = run.store.get("build", mix["build"]) or {}
        return made | {"files": files, "artifact": read_artifact(folder).facts, "search_s": mix["search_s"]}


def _tried(found: dict[str, Any], within: float) -> Tried:
    high = found["delta_high"]
    return Tried(tuple(found["keep_fp32"]), found["holds"], None if high is None else high / within)


def _evaluations(tried: Sequence[dict[str, Any]]) -> int:
    """Passes over VAL: mixes that no engine built are none."""
    return sum(one["delta_high"] is not None for one in tried)


def _nothing_holds(tried: Sequence[dict[str, Any]], layers: int) -> str:
    best = min(tried, key=lambda one: (one["delta_high"] is None, one["delta_high"]))
    kept = len(best["keep_fp32"])
    return (
        f"no mix of precisions holds on VAL, of {_evaluations(tried)} evaluated: the best, with {kept} of {layers} "
        f"layers in FP32: {best['why']}"
    )
