"""What a study comes to: its units, and what needs what."""

from __future__ import annotations

from qray.data.manifest import Manifest, digest_of
from qray.data.splits import SPLITS
from qray.errors import UsageError
from qray.graph.unit import Graph, Unit
from qray.measure.isa import Machine, this_machine
from qray.study import Imported, Sensitivity, Study, Training, Variant
from qray.units.build import build_unit
from qray.units.costs import costs_unit
from qray.units.evaluate import BASELINE, baseline_unit, evaluate_unit, predict_unit
from qray.units.latency import latency_unit
from qray.units.memory import memory_unit
from qray.units.mix import mix_unit, mixed_build_unit, sensitivity_of
from qray.units.sensitivity import sensitivity_units
from qray.units.serving import serving_unit
from qray.units.sweep import sweep_unit
from qray.units.train import finetune_unit, train_unit

#: Kinds of units that each stage of `qray run` is for; what they need comes with them.
STAGES = {
    "train": {"train"},
    "sweep": {"sweep"},
    "build": {"build"},
    "evaluate": {"evaluate"},
    "measure": {"memory", "measure", "serve", "costs"},
    "sensitivity": {"sensitivity"},
    "all": {"evaluate", "sensitivity", "memory", "measure", "serve", "costs"},
}
#: Kinds that want the node to themselves, and are run when nothing else is left.
ALONE = {"measure", "serve", "costs"}


def study_units(study: Study, manifest: Manifest, machine: Machine | None = None) -> Graph:
    """Every unit of a study on a data set; the only place that says what needs what.

    machine: of the run, or the least of a cluster's; by default this one.

    Raises:
        UsageError: there are fewer TRAIN clips than workers.
    """
    machine = machine or this_machine()
    isa = machine.isa if study.target.isa == "native" else study.target.isa
    digests = {split: digest_of(manifest.split(split)) for split in SPLITS}
    training = _trained_by(study.training, machine) if study.training else None
    if training and training.workers > (n_clips := len(manifest.split("TRAIN"))):
        raise UsageError(f"training.workers: {training.workers} cannot share {n_clips} TRAIN clips")
    train = train_unit(study, training, digests)
    fixed = study.model.untrainable if isinstance(study.model, Imported) and not study.model.trainable else None
    sweep = sweep_unit(study, isa, train, digests) if fixed is None else None
    widths = {v.weight_bits: None for v in study.variants if v.method == "finetune"} if sweep else {}
    finetune = {width: finetune_unit(study.fit, width, train, sweep) for width in widths if sweep}
    units = [train, *([sweep] if sweep else []), *finetune.values()]
    measured: dict[Sensitivity, list[Unit]] = {}

    def layers(settings: Sensitivity) -> list[Unit]:
        return measured.setdefault(settings, sensitivity_units(study, settings, isa, train, digests))

    def build_of(variant: Variant) -> Unit:
        return build_unit(study, variant, isa, train, sweep, finetune.get(variant.weight_bits), digests, fixed,
                          machine.gpu_name)  # fmt: skip

    def predict_of(build: Unit) -> Unit:
        return predict_unit(study, build, digests)

    shared = layers(study.sensitivity) if study.sensitivity is not None else []
    reference = build_of(study.reference)
    on_val = predict_of(reference)
    builds: dict[str, list[Unit]] = {}
    for variant in study.variants:
        if variant.accuracy is not None:
            own = layers(sensitivity_of(study, variant))
            mix = mix_unit(study, variant, isa, own[-1], on_val, build_of, predict_of)
            # The study's own layers first: they are what the report shows.
            units += [*shared, *own, reference, on_val, mix]
            build = mixed_build_unit(variant, isa, mix)
        else:
            build = reference if variant == study.reference else build_of(variant)
        builds.setdefault(variant.device, []).append(build)
        units += [build, evaluate_unit(study, variant, build, digests, machine.gpu_name)]
    units += [baseline_unit(digests), *shared]
    for at in study.points():
        there = builds[at.device]
        units += [*(memory_unit(at, build, machine.gpu_name) for build in there),
                  latency_unit(study.measure, at, there, machine.gpu_name)]  # fmt: skip
        if study.measure.serving is not None:
            units.append(serving_unit(study.measure.serving, at, there, machine.gpu_name))
    return Graph([*units, costs_unit(study, train, digests)])


def units_of_stage(graph: Graph, stage: str) -> list[Unit]:
    """What a stage of `qray run` is for. What needs no model is in each."""
    return [unit for unit in graph if unit.kind in STAGES[stage] or unit.name == BASELINE]


def _trained_by(training: Training, machine: Machine) -> Training:
    """The fit settings with the precision that `auto` comes to; a GPU decides for itself."""
    if training.precision != "auto" or machine.gpu:
        return training
    return training.model_copy(update={"precision": "bf16" if machine.bf16 else "fp32"})
