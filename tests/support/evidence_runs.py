"""A finished run that was made up, in which the right verdicts are known: OUT as the store writes it, without training,
Ray or a video."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qray.atomic import write_text
from qray.data.manifest import Manifest, write_rejected
from qray.graph.store import Store
from qray.judge.index import Index, PointUnits, Result, TrialState, write_index
from qray.judge.judge import read_evidence
from qray.judge.table import write_table
from qray.judge.timing import write_phases
from qray.measure.isa import Machine
from qray.measure.latency import Latency
from qray.study import Study
from qray.study_files import dump_study

BEGAN = 1_780_000_000.0
MARGIN = 1.0
REJECTED = pd.DataFrame({"row": [7, 90], "clip": ["clip-x", "clip-y"], "reason": ["no such file", "EF is no number"]})


@dataclass(frozen=True)
class Made:
    """A variant made by hand.

    delta, sd: mean and standard deviation of the change of the absolute error to FP32 over the clips, exactly; ms: its
    median latency; size: bytes as shipped; reason: why there is nothing (status skipped or failed); settings: of the
    variant in the study.
    """

    method: str
    engine: str
    delta: float = 0.0
    sd: float = 0.0
    ms: float = 8.0
    size: int = 3_500_000
    int8: float = 0.0
    rss: float = 300.0
    status: str = "ok"
    reason: str | None = None
    weight_bits: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


#: With 200 clips and a margin of 1 the half-width of an interval is 0.14 sd. The right verdicts:
VARIANTS: Mapping[str, Made] = {
    "fp32": Made("fp32", "eager", ms=8.0, rss=720.0),
    "fp32-inductor": Made("fp32", "inductor", 0.0, 0.001, ms=4.8, size=4_400_000, rss=700.0),  # non-inferior, equal
    "fp32-onnxruntime": Made("fp32", "onnxruntime", 0.0, 0.001, ms=3.4, size=2_900_000, rss=90.0),
    "fp32-openvino": Made("fp32", "openvino", 0.0, 0.001, ms=3.6, size=2_900_000, rss=110.0),
    "bf16-openvino": Made("bf16", "openvino", 0.01, 0.1, ms=2.2, size=1_500_000, rss=110.0),  # equivalent
    "dynamic": Made("dynamic", "eager", 0.9, 1.5, ms=8.3, size=3_400_000, rss=740.0),  # inconclusive, and slow
    "ptq-openvino": Made("ptq", "openvino", 0.05, 0.5, ms=1.5, size=870_000, int8=1.0, rss=110.0),  # to be shipped
    "ptq-onnxruntime": Made("ptq", "onnxruntime", 2.5, 2.0, ms=1.9, size=860_000, int8=1.0, rss=85.0),  # inferior
    "ptq-inductor": Made("ptq", "inductor", status="skipped", reason="no C++ compiler (g++) was found"),
    "qat-inductor": Made("qat", "inductor", -1.5, 1.0, ms=2.4, size=2_400_000, int8=1.0, rss=700.0,
                         weight_bits=8),  # better by more than the margin: non-inferior, not equivalent
    "finetune": Made("finetune", "eager", -1.4, 1.0, ms=8.0),
    "qat-w4-inductor": Made("qat", "inductor", status="failed", reason="int8_mac_share 0.42 is under 0.95",
                            weight_bits=4),
}  # fmt: skip
RIGHT = {
    "fp32-inductor": "non-inferior", "fp32-onnxruntime": "non-inferior", "fp32-openvino": "non-inferior",
    "bf16-openvino": "non-inferior", "dynamic": "inconclusive", "ptq-openvino": "non-inferior",
    "ptq-onnxruntime": "inferior", "qat-inductor": "non-inferior", "finetune": "non-inferior",
}  # fmt: skip


def device_of(made: Made) -> str:
    """The device that a variant is built for."""
    return str(made.settings.get("device", "cpu"))


def key_of(kind: str, name: str) -> str:
    """A key as the store's are, made of a name."""
    return hashlib.blake2b(f"{kind} {name}".encode(), digest_size=8).hexdigest()


def make_study(
    variants: Mapping[str, Made] = VARIANTS, name: str = "made", seed: int = 0,
    verdict: Mapping[str, Any] | None = None, data_dir: Path | None = None,
    measure: Mapping[str, Any] | None = None,
) -> Study:  # fmt: skip
    """The study of a run made by hand; FP32 is in it whether or not the run has it."""
    listed = {"fp32": VARIANTS["fp32"]} | dict(variants)
    return Study.model_validate(
        {
            "name": name, "seed": seed,
            "data": {"dir": str(data_dir) if data_dir else None},
            "variants": [
                {"name": variant, "method": made.method, "engine": made.engine, "weight_bits": made.weight_bits or 8}
                | dict(made.settings)
                for variant, made in listed.items()
            ],
            "sweep": {"trials": 2},
            "verdict": {"margin": MARGIN, "bootstrap": 1000} | dict(verdict or {}),
            "measure": dict(measure or {}),
        }
    )  # fmt: skip


def standard_noise(rng: np.random.Generator, clips: int, mean: float, sd: float) -> np.ndarray:
    """Uniform noise whose mean and standard deviation over the clips are exactly these; float64 (clips,)."""
    noise = rng.uniform(-1, 1, clips)
    spread = noise.std(ddof=1) if clips > 1 else 0.0
    return mean + sd * (noise - noise.mean()) / (spread or 1.0)


def make_predictions(
    variants: Mapping[str, Made], clips: int = 200, seed: int = 0, names: Sequence[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Predictions on the same clips, by variant, the mean predictor ("mean-predictor") among them.

    The clips and targets are the same for every seed. FP32 errs by 3.5 to 12 points, 5.6 on average; a variant errs on
    the same side as FP32, by exactly its delta more on average.
    """
    fixed = np.random.default_rng(20)
    target = np.clip(fixed.normal(52, 12, clips), 20, 80)
    side = fixed.choice([-1.0, 1.0], clips)
    error = np.clip(np.random.default_rng((seed, 0)).gamma(9.0, 0.6, clips), 3.5, 12.0)
    frames = {}
    for at, (name, made) in enumerate(variants.items()):
        if made.status != "ok":
            continue
        own = error + standard_noise(np.random.default_rng((seed, 1 + at)), clips, made.delta, made.sd)
        if own.min() < 0:
            raise ValueError(f"{name}: a change of {made.delta} +- {made.sd} turns an error round; take a smaller one")
        frames[name] = _frame(target, target + side * own, names)
    frames["mean-predictor"] = _frame(target, np.full(clips, 53.0), names)
    return frames


def _frame(target: np.ndarray, predicted: np.ndarray, names: Sequence[str] | None) -> pd.DataFrame:
    clips = list(names) if names is not None else [f"clip-{i:03d}" for i in range(len(target))]
    return pd.DataFrame({"clip": clips, "target": target, "prediction": predicted})


def make_latency(variants: Mapping[str, Made], seed: int = 0, blocks: int = 10, calls: int = 25) -> dict[str, Latency]:
    """Latencies by variant, interleaved: what slows a round slows all variants in it."""
    rng = np.random.default_rng((seed, 99))
    rounds = 1 + 0.05 * rng.random(blocks)
    return {
        name: Latency(
            [list(made.ms * slow * (1 + 0.02 * np.abs(rng.normal(size=calls)))) for slow in rounds],
            0.3, "this host", "avx2 avx512_vnni",
        )
        for name, made in variants.items() if made.status == "ok"
    }  # fmt: skip


def make_run(
    folder: Path,
    *,
    variants: Mapping[str, Made] | None = None,
    change: Mapping[str, Mapping[str, Any]] | None = None,
    clips: int = 200,
    seed: int = 0,
    name: str = "made",
    verdict: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    clip_names: Sequence[str] | None = None,
    without: Collection[str] = (),
    nan: Mapping[str, int] | None = None,
    constant: Collection[str] = (),
    units: Mapping[str, Mapping[str, Any]] | None = None,
    measure: Mapping[str, Any] | None = None,
    table: bool = False,
) -> Path:
    """Write OUT as a finished run leaves it, apart from artifacts and checkpoints, and return it.

    variants: instead of VARIANTS. change: fields of `Made` by variant, as {"ptq-openvino": {"delta": 3.0}}. verdict:
    keys of the study's verdict. without: variants of which nothing is finished (FP32 too). nan: how many of a variant's
    predictions are NaN. constant: variants that predict 50 for every clip. units: further records, by "KIND-KEY" (the
    index names "sensitivity-abc" and "costs-abc", and where the study measures serving "serve-def"). table:
    results.parquet too, which `show` reads and nothing else.
    """
    made = {variant: replace(one, **(change or {}).get(variant, {})) for variant, one in (variants or VARIANTS).items()}
    study = make_study(made, name, seed, verdict, data_dir, measure)
    made = {variant: one for variant, one in made.items() if variant not in without}
    predictions = make_predictions(made, clips, seed, clip_names)
    for variant, count in (nan or {}).items():
        predictions[variant].loc[: count - 1, "prediction"] = np.nan
    for variant in constant:
        predictions[variant]["prediction"] = 50.0
    latency = make_latency(made, seed)
    store = Store(folder)
    write_text(folder / "study.yaml", dump_study(study))
    write_rejected(Manifest(pd.DataFrame(), REJECTED, "", {}), folder / "rejected.parquet")
    files = {}
    for variant, frame in predictions.items():
        path = store.save_predictions(key_of("evaluate", variant), "TEST", frame, frame["prediction"].to_numpy(), seed)
        files[variant] = [store.relative(path)]
    _put_units(store, made, latency, files)
    for unit, record in (units or {}).items():
        store.put(*unit.split("-"), dict(record))
    write_index(folder, make_index(study, made))
    if table:
        write_table(read_evidence(folder))
    return folder


def make_index(study: Study, made: Mapping[str, Made]) -> Index:
    """run.json of a run into which the records of `_put_units` were put."""
    names = [variant.name for variant in study.variants]
    ended = {key_of("build", name): Result(one.status, {}, one.reason) for name, one in made.items()
             if one.status != "ok"}  # fmt: skip
    on = {v.name: v.device for v in study.variants}
    return Index(
        "all", BEGAN, Machine("avx512-vnni", bf16=True),
        {"train": key_of("train", "fp32"), "sweep": key_of("sweep", "qat"), "sensitivity": "abc", "costs": "abc"},
        {
            v.name: {"build": key_of("build", v.name), "evaluate": key_of("evaluate", v.name)}
            | ({"trial": key_of("trial", str(v.weight_bits))} if v.method == "qat" else {})
            for v in study.variants
        },
        key_of("evaluate", "mean-predictor"),
        tuple(
            TrialState(f"qat-w{bits}-abcdef", key_of("trial", str(bits)), _settings(bits), "whole", 1,
                       key_of("trial", str(bits)))
            for bits in (8, 4)
        ),
        tuple(
            PointUnits(1, 1, key_of("measure", f"latency on {device}"),
                       {name: key_of("memory", name) for name in names if on[name] == device}, device,
                       "def" if study.measure.serving else None)
            for device in sorted(set(on.values()))
        ), ended,
        study.verdict.model_dump(mode="json"),
    )  # fmt: skip


def _settings(bits: int) -> dict[str, Any]:
    return {"weight_bits": bits, "lr": 1e-4, "epochs": 1, "observer": "minmax", "keep_fp32": []}


def _put_units(
    store: Store, made: Mapping[str, Made], latency: Mapping[str, Latency], files: Mapping[str, list[str]]
) -> None:
    def unit(kind: str, name: str, at: float, seconds: float, **record: Any) -> None:
        label = {} if kind == "trial" else {"label": f"{kind} {name}"}
        by = {"versions": {"torch": "2.14.1", "qray": "0.1.0"}, "host": "this host", "cpu_flags": "avx2 avx512_vnni"}
        store.put(kind, key_of(kind, name), by | record | label | {"started": BEGAN + at, "seconds": seconds})

    unit("train", "fp32", 10.0, 120.0, train_s=120.0)
    for bits in (8, 4):
        unit("trial", str(bits), 140.0, 50.0, status="ok", reason=None, val_mae=5.0 + bits / 100, train_s=50.0,
             settings=_settings(bits))  # fmt: skip
    unit("evaluate", "mean-predictor", 1.0, 0.1, files=files["mean-predictor"])
    for at, name in enumerate(latency):
        facts = {"size_bytes": made[name].size, "weights_bytes": made[name].size - 100_000, "isa": "avx512-vnni",
                 "int8_mac_share": made[name].int8, "notes": made[name].notes}  # fmt: skip
        unit("build", name, 130.0 + 8 * at, 5.0, artifact=facts)
        unit("evaluate", name, 136.0 + 8 * at, 10.0, files=files[name], failed_clips={})
        unit("memory", name, 280.0, 2.0, peak_rss_mb=made[name].rss)
    for device in sorted({device_of(one) for one in made.values()}):
        by_key = {key_of("build", name): asdict(value) for name, value in latency.items()
                  if device_of(made[name]) == device}  # fmt: skip
        unit("measure", f"latency on {device}", 260.0, 20.0, latency=by_key)
    phases = {"check the videos": 8.0, "start Ray": 4.0, "train, build and evaluate": 245.0,
              "measure latency and costs": 30.0, "write the table": 3.0}  # fmt: skip
    write_phases(store.out, phases, sum(phases.values()), BEGAN)
