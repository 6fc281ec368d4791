"""Which module builds and loads which variant: an explicit table, engines imported when they are needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from qray.atomic import atomic_path
from qray.errors import QrayError
from qray.measure.host import cpu_flags, versions
from qray.study import Variant
from qray.variants.artifact import Artifact, BuildRequest, Predict, read_artifact, write_artifact_json

MODULES = {
    "eager": "qray.variants.torch_export",
    "inductor": "qray.variants.inductor",
    "onnxruntime": "qray.variants.onnxruntime",
    "openvino": "qray.variants.openvino",
}


def _module(engine: str) -> ModuleType:
    return importlib.import_module(MODULES[engine])


def missing_requirement(variant: Variant) -> str | None:
    """Why this variant cannot be built on this machine, in a sentence, or None."""
    return _module(variant.engine).requirement(variant)


def build_artifact(request: BuildRequest, key: str, folder: Path) -> Artifact:
    """Build into `folder`, which appears complete or not at all.

    Raises:
        QrayError: what came out is not what the variant's name says. Unavailable: the engine cannot be had here.
    """
    if request.variant.method == "ptq" and not request.calibration:
        raise QrayError(f"{request.variant.name}: static quantization observes calibration clips, and there are none")
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        built = _module(request.variant.engine).build(request, temporary)
        facts = {**versions(), "cpu_flags": " ".join(sorted(cpu_flags()))}
        write_artifact_json(Artifact(temporary, request.variant, key, request.clip, built, facts))
    return read_artifact(folder)


def load_artifact(artifact: Path | Artifact, threads: int = 1) -> Predict:
    """Load a finished artifact: uint8 (B, T, H, W, 3) -> float32 (B,), target units."""
    if isinstance(artifact, Path):
        artifact = read_artifact(artifact)
    return _module(artifact.variant.engine).load(artifact.folder, artifact.built, threads)
