"""Building, loading and refusing artifacts of any engine; and what a machine must have for a variant, told without
torch, since a driver asks it too."""

from __future__ import annotations

import importlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from qray.atomic import atomic_path
from qray.engines.artifact import Artifact, BuildRequest, Predict, read_artifact, write_artifact_json
from qray.engines.catalog import ENGINES
from qray.errors import QrayError
from qray.measure.host import cpu_flags, versions
from qray.measure.isa import ISA_FLAGS, capabilities
from qray.point import CPU
from qray.study import INT8_METHODS, Variant


def _module(engine: str) -> ModuleType:
    return importlib.import_module(ENGINES[engine].module)


def missing_requirement(variant: Variant, isa: str = "any") -> str | None:
    """Why this variant cannot be built for an instruction set on this machine, in a sentence, or None."""
    lacking = sorted(set(build_needs(variant, isa)) - cpu_flags())
    if lacking:
        return f"target.isa is {isa}, and this machine lacks {', '.join(lacking)}: what is built cannot be tried here"
    engine = ENGINES[variant.engine]
    missing = [name for name in engine.on(variant.device)[variant.method] if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: pip install 'qray[{engine.extra}]'"
    return engine.lacks(variant.method, variant.device)


def processes(variant: Variant) -> str:
    """The name of the processes that build it and nothing of another name; empty where any will do."""
    return variant.engine if variant.method in ENGINES[variant.engine].changes_process else ""


def depends_on_isa(variant: Variant) -> bool:
    """Whether what is built depends on the instruction set: INT8 by its range, compiled code by the compiler's."""
    return variant.method in INT8_METHODS or ENGINES[variant.engine].compiles


def build_needs(variant: Variant, isa: str) -> tuple[str, ...]:
    """CPU flags of a machine that can build a variant, and try what it built."""
    return ISA_FLAGS[isa] if depends_on_isa(variant) else ()


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
        write_artifact_json(Artifact(temporary, request.variant, key, request.clip, request.isa, built, facts))
    return read_artifact(folder)


def load_artifact(
    artifact: Path | Artifact, threads: int = 1, device: str | None = None, allow_code: bool = False
) -> Predict:
    """Load a finished artifact to run on a device: uint8 (B, T, H, W, 3) -> float32 (B,), target units.

    Nothing of an artifact is run but its graph, whoever made it, except where the engine's artifacts are native code.
    device: by default the one that it was built for. allow_code: whether that may run, because whoever built it is
    trusted.

    Raises:
        QrayError: the engine does not run on this device, or there is none; this CPU lacks what the artifact was built
            for; its kernels are right on one thread alone, so that it would compute something else, or nothing; it is
            native code, which was not allowed; or its files lie elsewhere.
    """
    if isinstance(artifact, Path):
        artifact = read_artifact(artifact)
    engine, method = artifact.variant.engine, artifact.variant.method
    device = device or artifact.variant.device
    # What is compiled is compiled for one device.
    able = (artifact.variant.device,) if ENGINES[engine].built_there else ENGINES[engine].devices
    if device not in (offered := tuple(each for each in able if method in ENGINES[engine].on(each))):
        raise QrayError(f"{artifact.folder}: {method} of engine {engine} runs on {', '.join(offered)}, not on {device}")
    if threads > 1 and artifact.built.notes.get("one_thread"):
        raise QrayError(
            f"{artifact.folder}: on several threads the INT8 kernels of {engine} give other "
            "predictions in each call for layers whose channels are no multiple of 16; load it with threads=1"
        )
    lacking = sorted(set(artifact.built.needs) - capabilities())
    if lacking:
        raise QrayError(
            f"{artifact.folder}: built for {artifact.isa}, and this CPU lacks {', '.join(lacking)}; build it here, or "
            "for every CPU with --set target.isa=any"
        )
    module = _module(engine)
    _check_files(artifact, module.MODEL_FILE)
    if ENGINES[engine].native and not allow_code:
        raise QrayError(
            f"{artifact.folder}: an artifact of engine {engine} is native code, which loading it runs; if you trust "
            "whoever built it, allow that with --allow-code (in Python: allow_code=True)"
        )
    return module.load(artifact.folder, artifact.built, threads, device)


def on_this_cpu(artifact: Artifact, allow_code: bool = False) -> Predict:
    """What an artifact computes, built for a CPU or a GPU: of the latter what its operators say, by their references.
    allow_code: as `load_artifact`.

    Raises:
        QrayError: as `load_artifact`.
    """
    if artifact.variant.device == CPU:
        return load_artifact(artifact, allow_code=allow_code)
    from qray.engines import torch_export

    module = _module(artifact.variant.engine)
    _check_files(artifact, module.MODEL_FILE)
    return torch_export.load(artifact.folder, replace(artifact.built, notes={}), 1, CPU)


def _check_files(artifact: Artifact, model_file: str) -> None:
    """Only files of the folder are opened, and of a name that the engine gives them: by others it would tell formats
    that qray does not write."""
    if artifact.built.model_file != model_file:
        raise QrayError(
            f"{artifact.folder}: its model is called {artifact.built.model_file!r}; engine {artifact.variant.engine} "
            f"calls it {model_file}"
        )
    root = artifact.folder.resolve()
    for path in artifact.folder.iterdir():
        if not path.resolve().is_relative_to(root):
            raise QrayError(f"{path}: a link out of the artifact's folder; copy what it leads to there")
        if not path.is_file() and not path.is_dir():
            raise QrayError(f"{path}: not a file")
