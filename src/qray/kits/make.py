"""A kit: a folder with artifacts, clips, the predictions that must come out, and the program that measures them on a
device that has an engine, Python and numpy, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import qray
from qray.atomic import atomic_path, write_json
from qray.engines.artifact import Artifact, read_artifact
from qray.engines.catalog import ENGINES
from qray.errors import QrayError, UsageError
from qray.judge.evidence import Evidence, VariantEvidence
from qray.kits import bench
from qray.kits.measured import KITS
from qray.kits.smallest import smallest_program
from qray.point import CPU, CUDA, Point
from qray.study import Study

if TYPE_CHECKING:
    import pandas as pd

#: RMS, as a share of the margin, by which predictions of one artifact may differ between two devices however little its
#: method costs: sums of floats come in another order; and of TF32, which no CPU computes in, factors have 10 bits.
LEAST_RMS, LEAST_RMS_TF32 = 0.01, 0.05
#: What comes with programs for a GPU, as it lies in the package: how they run, the operator that some of them call, and
#: what measures a GPU.
PROGRAMS = ("engines/torch_program.py", "engines/int8_conv.py", "engines/int8_conv_triton.py", "measure/gpu.py")
_README = """A qray kit of the study {study}: {variants} to be measured on this device.

    pip install -r requirements.txt
    python bench.py --name WHAT-THIS-DEVICE-IS-CALLED

takes Python 3.8 or newer, no network and no qray; it checks every file and every prediction, and writes measured.json.
--minutes 5 has each variant work that long, which shows whether the device throttles; --limit 9 ends after nine minutes
with what was measured by then. The run.py beside an artifact is
the smallest program that predicts with it. Carry measured.json back, and

    qray run table OUT --measured measured.json

adds this device's rows. clips.npy holds VAL clips of the data set, uint8 {shape}: its licence
is that of the data set. `sha256sum -c SHA256SUMS` checks the files too.
"""
_LICENCES = """The program bench.py is part of qray, under the terms of LICENSE.
The weights in artifacts/ and the clips in clips.npy are of whoever trained and recorded them, under their terms.
Engines, which are not in this kit, come under their own:
"""


def kit_variants(
    evidence: Evidence, names: Sequence[str], device: str | None = None, allow_code: bool = False
) -> tuple[list[VariantEvidence], dict[str, str]]:
    """The variants that a kit of these names has, all that can be carried where none is named; and why others have not.
    device: for which they were built, "cpu" or "cuda"; a kit is for one of both, by default that of the first name.
    allow_code: whether native code of OUT may run, here to predict what must come out, and there.

    Raises:
        UsageError: one that is named is none of the study, or cannot be carried. QrayError: none can.
    """
    known = {variant.name: variant for variant in evidence.variants}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no variant {unknown[0]!r}; those of the study: {', '.join(known)}")
    device = device or (known[names[0]].device if names else CPU)
    left = {
        name: why for name, each in known.items()
        if (why := _not_carried(evidence, each, device, allow_code)) is not None
    }  # fmt: skip
    for name in names:
        if name in left:
            raise UsageError(f"{name}: {left[name]}")
    found = [variant for name, variant in known.items() if name not in left and (not names or name in names)]
    if not found:
        raise QrayError(f"no variant of {evidence.out} can be carried: {next(iter(left.values()), 'it has none')}")
    return found, {} if names else left


def _not_carried(evidence: Evidence, variant: VariantEvidence, device: str, allow_code: bool) -> str | None:
    engine = variant.outcome.engine
    if variant.device != device:
        return f"it was built for {variant.device}, and this kit is for {device} (--device)"
    # What a GPU is missing for is carried to one.
    if variant.status == "failed" or (variant.status == "skipped" and device == CPU):
        return f"{variant.status}: {variant.reason}"
    if device not in ENGINES[engine].carried:
        able = [name for name, entry in ENGINES.items() if device in entry.carried]
        return f"a kit for {device} has artifacts of {', '.join(able)}, not of {engine}"
    if variant.outcome.artifact is None or not (evidence.out / variant.outcome.artifact).is_dir():
        return f"its artifact is not in {evidence.out}; `qray run build` makes it again"
    if ENGINES[engine].native and not allow_code:
        return f"an artifact of {engine} is native code; if you trust whoever built it, allow that with --allow-code"
    return None


def make_kit(
    evidence: Evidence, variants: Sequence[VariantEvidence], clips: pd.DataFrame, frames: np.ndarray, to: Path
) -> str:
    """Write a kit, whole or not at all, and keep in OUT what it holds. Returns its id.

    clips: with clip and target; frames: uint8 (N, T, H, W, 3), the same clips.

    Raises:
        QrayError: FP32's artifact is not there, or an artifact cannot be loaded here.
    """
    from qray.engines.registry import load_artifact, on_this_cpu

    reference = evidence.reference.outcome.artifact
    if reference is None or not (evidence.out / reference).is_dir():
        raise QrayError(f"the artifact of FP32, which devices are compared with, is not in {evidence.out}; "
                        "`qray run build` makes it again")  # fmt: skip
    fp32, study = _predicted(load_artifact(evidence.out / reference), frames), evidence.study
    with atomic_path(to) as folder:
        folder.mkdir(parents=True)
        np.save(folder / "clips.npy", frames, allow_pickle=False)
        entries = []
        for variant in variants:
            artifact = read_artifact(evidence.out / str(variant.outcome.artifact))
            # What is native code was allowed to be where it was chosen.
            expected = _predicted(on_this_cpu(artifact, allow_code=True), frames)
            inside = f"artifacts/{variant.name}"
            shutil.copytree(artifact.folder, folder / inside)
            made = artifact.variant
            if text := smallest_program(variant.name, made.engine, made.method, artifact.built.model_file):
                (folder / inside / "run.py").write_text(text, encoding="utf-8")
            entries.append(_entry(variant, artifact, inside, expected, fp32, study))
        shutil.copy(Path(bench.__file__), folder / "bench.py")
        (device,) = {variant.device for variant in variants}
        if device == CUDA:
            # Of the same names as here, by which they find one another.
            for file in PROGRAMS:
                (copied := folder / "qray" / file).parent.mkdir(parents=True, exist_ok=True)
                for package in (copied.parent, copied.parent.parent):
                    (package / "__init__.py").touch()
                shutil.copy(Path(qray.__file__).with_name(file), copied)
        _texts(folder, study.name, variants, frames.shape)
        files = {path.relative_to(folder).as_posix(): bench.sha256(path)
                 for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip
        at = study.points(device) or [Point(device=device, threads=1, batch=1)]
        mean = evidence.baseline.outcome.predictions
        kit = {
            "format": bench.FORMAT, "study": study.name, "split": "VAL", "target": study.data.target_column,
            "clips": clips["clip"].astype(str).tolist(), "targets": clips["target"].astype(float).tolist(),
            "fp32": fp32.tolist(), "mean": None if mean is None else float(mean["prediction"][0]), "variants": entries,
            "points": [{"threads": each.threads, "batch": each.batch} for each in at],
            "measure": study.measure.of_a_point(), "device": device, "files": files,
        }  # fmt: skip
        write_json(folder / "kit.json", kit)
        sums = {**files, "kit.json": bench.sha256(folder / "kit.json")}
        (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        identity = sums["kit.json"]
        write_json(evidence.out / KITS / f"{identity}.json", kit)
    return identity


def _predicted(predict: Any, frames: np.ndarray) -> np.ndarray:
    """One by one, as bench.py does."""
    return np.array([float(predict(clip[None])[0]) for clip in frames])


def _entry(
    variant: VariantEvidence, artifact: Artifact, inside: str, expected: np.ndarray, fp32: np.ndarray, study: Study
) -> dict[str, Any]:
    """What kit.json says of a variant. allowed_rms: as much as kernels may add to what its method costs."""
    cost = float(np.sqrt(np.square(expected - fp32).mean()))
    method, notes = artifact.variant.method, artifact.built.notes
    least = LEAST_RMS_TF32 if method == "tf32" else LEAST_RMS
    return {
        "name": variant.name, "key": artifact.key, "engine": artifact.variant.engine, "method": method,
        "folder": inside, "model_file": artifact.built.model_file, "expected": expected.tolist(),
        "needs": ENGINES[artifact.variant.engine].carried[variant.device], "device": variant.device,
        **{name: bool(notes.get(name)) for name in ("one_thread", "tf32", "cuda_graph", "u8u8")},
        "allowed_rms": max(study.parity.max_kernel_share * cost, least * study.verdict.margin),
    }  # fmt: skip


def _texts(folder: Path, study: str, variants: Sequence[VariantEvidence], shape: tuple[int, ...]) -> None:
    """What people and pip read."""
    packages = sorted({ENGINES[variant.outcome.engine].carried[variant.device] for variant in variants})
    named = ", ".join(variant.name for variant in variants)
    readme = _README.format(study=study, variants=named, shape=shape)
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{name}\n" for name in ("numpy", *packages)), encoding="utf-8")
    said = [f"  {name}: {_licence_of(name)}" for name in ("numpy", *packages)]
    (folder / "LICENCES.txt").write_text("\n".join([_LICENCES.rstrip(), *said, ""]), encoding="utf-8")
    for file in metadata.files("qray") or ():
        if file.name == "LICENSE":
            shutil.copy(Path(str(file.locate())), folder / "LICENSE")


def _licence_of(package: str) -> str:
    told = metadata.metadata(package)
    named = [told[field] for field in ("License-Expression", "License") if field in told]
    # Into the old field some packages write the whole text.
    return named[0].splitlines()[0] if named else "see its own files"
