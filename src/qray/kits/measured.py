"""What came back from a device: measured.json, checked against the kit that OUT remembers, and made into outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qray.atomic import write_json
from qray.errors import QrayError
from qray.json_text import read_json
from qray.kits.bench import FORMAT, NAME
from qray.measure.host import INFERENCE_FLAGS
from qray.point import CPU, CUDA
from qray.yaml_text import dotted, short

#: Folders of OUT: of what each kit holds, by its id; of what was measured, by the device's name.
KITS, MEASURED = "kits", "measured"
M = TypeVar("M", bound=BaseModel)
Positive = Annotated[float, Field(gt=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Identity = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Brought(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", frozen=True)


class OfVariant(_Brought):
    """Of one variant on the device."""

    status: Literal["ok", "skipped", "failed"]
    reason: str | None = None
    #: Of the kit's clips, in their order; target units.
    predictions: list[float] = []
    #: RMS of these less those of where it was built.
    rms: Milliseconds | None = None
    #: Seconds from the start of a process to its first prediction, engine and all.
    cold_start_s: Positive | None = None
    peak_rss_mb: Positive | None = None
    #: Medians of the calls of every ten seconds of work without a pause.
    sustained_ms: list[Positive] = []


class AtPoint(_Brought):
    """Latency of all variants together, interleaved."""

    threads: Annotated[int, Field(gt=0, le=4096)]
    batch: Annotated[int, Field(gt=0, lt=2**31)]
    blocks_ms: dict[str, list[list[Milliseconds]]]
    #: Of a GPU alone (`qray.measure.gpu`).
    compute_ms: dict[str, list[Milliseconds]] = {}
    throughput_clips_s: dict[str, Positive] = {}
    error: str | None = None
    errors: dict[str, str] = {}


class Machine(_Brought):
    """What the device is."""

    system: str
    machine: str
    cores: Annotated[int, Field(gt=0)]
    cpu: str
    board: str
    flags: list[str]
    python: str
    numpy: str
    #: What variants for a GPU ran on.
    gpu: str = ""


class Measured(_Brought):
    """measured.json, as bench.py writes it."""

    format: int
    kit: Identity
    device: Annotated[str, Field(pattern=f"^{NAME}$")]
    machine: Machine
    engines: dict[str, str]
    load_average: float | None
    started: Positive
    seconds: Positive
    variants: dict[str, OfVariant]
    latency: list[AtPoint]


class Entry(BaseModel):
    """What a kit says of one of its variants, as far as it is read again."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)
    name: str
    key: str
    engine: str
    method: str
    allowed_rms: Positive
    expected: list[float]


class Kit(BaseModel):
    """kit.json, likewise."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)
    study: str
    clips: list[str]
    targets: list[float]
    fp32: list[float]
    mean: float | None
    variants: list[Entry]


def read_measured(path: Path) -> Measured:
    """A measured.json, whoever wrote it.

    Raises:
        QrayError: it is none, or holds what bench.py would not write.
    """
    if not path.is_file():
        raise QrayError(f"{path}: no such file; `python bench.py` in a kit writes it")
    found = _read(path, Measured, "not a measured.json as a kit's bench.py writes it")
    if found.format != FORMAT:
        raise QrayError(f"{path}: format {found.format}, this qray reads format {FORMAT}; make the kit again")
    if found.device in (CPU, CUDA):
        raise QrayError(
            f"{path}: a device called {found.device!r} would be taken for this run's own; name it otherwise"
        )
    return found


def _read(path: Path, kind: type[M], otherwise: str) -> M:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{short(dotted(first['loc']))}: {first['msg']}"
    except (ValueError, TypeError, OSError, RecursionError) as error:
        why = short(str(error) or type(error).__name__)
    raise QrayError(f"{path}: {otherwise} ({why})")


def kit_of(out: Path, measured: Measured, where: str) -> Kit:
    """The kit that this was measured with, as OUT remembers it.

    Raises:
        QrayError: it is a kit of another run, or what was measured does not fit it.
    """
    path = out / KITS / f"{measured.kit}.json"
    if not path.is_file():
        raise QrayError(f"{where}: measured with a kit of another run, or one that was changed: none that was made of "
                        f"{out} has the id {measured.kit[:12]}…")  # fmt: skip
    kit = _read(path, Kit, "not readable as a kit, which must be made again")
    entries = {entry.name: entry for entry in kit.variants}
    if missing := sorted(entries.keys() ^ measured.variants.keys()):
        raise QrayError(f"{where}: its variants are not those of the kit ({missing[0]})")
    for name, found in measured.variants.items():
        if found.status != "ok":
            continue
        if len(found.predictions) != len(kit.clips):
            raise QrayError(f"{where}: {name} has {len(found.predictions)} predictions of {len(kit.clips)} clips")
        own = float(np.sqrt(np.square(np.array(found.predictions) - entries[name].expected).mean()))
        if own > entries[name].allowed_rms:
            allowed = f"{entries[name].allowed_rms:.3g} is allowed"
            raise QrayError(f"{where}: {name} is called right, and its predictions are {own:.3g} (RMS) from what must "
                            f"come out, where {allowed}")  # fmt: skip
    timed = {name for at in measured.latency for name in (*at.blocks_ms, *at.compute_ms, *at.throughput_clips_s)}
    right = {name for name, found in measured.variants.items() if found.status == "ok"}
    if timed - right:
        raise QrayError(f"{where}: a latency of {min(timed - right)}, which did not predict what it should")
    return kit


def take(out: Path, files: Iterable[Path]) -> list[str]:
    """Check files and keep what they hold in OUT, in the place of what the same device brought before; returns the
    devices. Nothing is kept unless all can be.

    Raises:
        QrayError: one cannot be used; says why.
    """
    found = [(path, read_measured(path)) for path in files]
    for path, measured in found:
        kit_of(out, measured, str(path))
    for _, measured in found:
        write_json(out / MEASURED / f"{measured.device}.json", measured.model_dump(mode="json"))
    return [measured.device for _, measured in found]


def kept(out: Path) -> list[tuple[Measured, Kit]]:
    """What OUT keeps of devices, by their names.

    Raises:
        QrayError: a file of it cannot be used.
    """
    files = sorted((out / MEASURED).glob("[!.]*.json"))
    read = [(path, read_measured(path)) for path in files]
    return [(measured, kit_of(out, measured, str(path))) for path, measured in read]


def host_of(measured: Measured) -> str:
    """The device as a row names its host."""
    machine = measured.machine
    board = f"{machine.board}: " if machine.board else ""
    gpu = f"{machine.gpu}, " if machine.gpu else ""
    return f"{measured.device} ({gpu}{board}{machine.cpu}, {machine.machine}, {machine.cores} cores)"


def flags_of(measured: Measured) -> str:
    """Those of its CPU's flags that matter to inference."""
    return " ".join(sorted(set(measured.machine.flags) & set(INFERENCE_FLAGS)))


def provenance_of_device(measured: Measured) -> Mapping[str, Any]:
    """Who made its figures, as a unit's record says it."""
    versions = {"python": measured.machine.python, "numpy": measured.machine.numpy, **measured.engines}
    return {"host": host_of(measured), "cpu_flags": flags_of(measured), "versions": versions}
