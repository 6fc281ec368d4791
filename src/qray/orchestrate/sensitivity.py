"""Steps of the sensitivity analysis: layers are measured by tasks side by side, then put together into one record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import ray

from qray.data.manifest import digest_of
from qray.errors import QrayError
from qray.judge.sensitivity import summarize
from qray.measure.isa import range_is_reduced
from qray.orchestrate.context import RunContext
from qray.orchestrate.plan import Plan
from qray.orchestrate.steps import Step
from qray.orchestrate.store import unit_key
from qray.orchestrate.tasks import LayersJob, measure_layers
from qray.study import Model, Sensitivity


def _depends_on(plan: Plan, settings: Sensitivity) -> dict[str, Any]:
    """What the predictions of every layer depend on."""
    study, manifest = plan.study, plan.manifest
    return {
        "train": plan.train, "calibration": study.calibration, "clips": digest_of(manifest.split("TRAIN")),
        "val": digest_of(manifest.split("VAL")), "seed": study.seed,
        # How many windows an evaluation averages has no part in this, nor how many tasks share the work.
        "clip": study.clip.model_dump(mode="json", exclude={"eval_windows"}),
        "settings": settings.model_dump(mode="json", exclude={"tasks"}),
        "reduce_range": range_is_reduced(plan.isa, settings.weight_bits),
    }  # fmt: skip


def sensitivity_key(plan: Plan) -> str | None:
    """Key of the study's sensitivity analysis; None where the study has none."""
    settings = plan.study.sensitivity
    if settings is None:
        return None
    bootstrap = {"bootstrap": plan.study.verdict.bootstrap, "seed": plan.study.verdict.seed}
    return unit_key("sensitivity", verdict=bootstrap, **_depends_on(plan, settings))


def validation_clips(plan: Plan, count: int) -> pd.DataFrame:
    """VAL clips that the layers are measured on, drawn by the study's seed."""
    clips = plan.manifest.split("VAL")
    chosen = np.random.default_rng((plan.study.seed, 2)).choice(len(clips), min(count, len(clips)), replace=False)
    return clips.iloc[np.sort(chosen)].reset_index(drop=True)


def _layers(model: Model) -> tuple[str, ...]:
    import torch

    from qray.model.regressor import VideoRegressor
    from qray.variants.layers import layer_names

    with torch.device("meta"):
        return layer_names(VideoRegressor(model))


def share_out(layers: Sequence[str], tasks: int) -> list[tuple[str, ...]]:
    """Neighbouring layers to each task, as evenly as they go."""
    return [tuple(part) for part in np.array_split(np.array(layers, dtype=object), min(tasks, len(layers)))]


def add_sensitivity_steps(run: RunContext) -> None:
    """Measure the layers that are not measured yet, and put them together.

    Raises:
        QrayError: the study has no `sensitivity` section.
    """
    study, plan, key = run.study, run.plan, sensitivity_key(run.plan)
    settings = study.sensitivity
    if settings is None or key is None:
        raise QrayError(f"study {study.name} has no `sensitivity:` section, so there are no layers to measure")
    if run.store.get("sensitivity", key) is not None:
        return
    layers = _layers(study.model)
    clips, upstream = validation_clips(plan, settings.clips), _depends_on(plan, settings)
    keys = []
    for part in share_out(layers, settings.tasks):
        keys.append(unit_key("layers", layers=part, **upstream))
        job = LayersJob(
            part, plan.isa, study.model, study.clip, settings, study.calibration.batch_size,
            run.eval_plan(study.clip.single_window()),
        )  # fmt: skip
        run.runner.add(_layers_step(run, job, keys[-1], clips))

    def finish(_: Any) -> dict[str, Any]:
        parts = [run.runner.record(part) for part in keys]
        target = clips["target"].to_numpy(np.float64)
        record = summarize(parts, layers, target, study.verdict.bootstrap, study.verdict.seed)
        facts = {"weight_bits": settings.weight_bits, "observer": settings.observer, "split": "VAL"}
        return facts | record

    # The driver's own work, in the form in which the loop takes it.
    run.runner.add(Step("sensitivity", key, "sensitivity", lambda: ray.put(None), finish, after=keys, slots=0))


def _layers_step(run: RunContext, job: LayersJob, key: str, val: pd.DataFrame) -> Step:
    def start() -> Any:
        calibration, clips = run.clips(run.plan.calibration_clips()), run.clips(val)
        options = {"num_cpus": run.slots.slot_cpus, "name": f"sensitivity:{job.title}"}
        return measure_layers.options(**options).remote(job, run.checkpoint(run.plan.train), calibration, clips)

    def finish(value: dict[str, Any]) -> dict[str, Any]:
        return value | run.name_failed("sensitivity", value.pop("failed"))

    return Step("layers", key, f"sensitivity of {job.title}", start, finish, after=[run.plan.train])
