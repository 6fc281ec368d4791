"""What is read of OUT's JSON, whoever wrote it: the types and bounds of each figure that a table or a report shows. A
record that does not keep to them is as good as none."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: Seconds, also since 1970: until the year 2242.
Seconds = Annotated[float, Field(ge=0, le=2**33)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    """What is not named in one is read with care, or by nobody. What may be missing has a default, which nobody reads:
    whoever reads it says what is missing."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class _Record(_Section):
    """Of a unit of any kind."""

    started: Seconds = 0.0
    seconds: Seconds = 0.0
    label: str | None = None
    host: str | None = None
    node: str | None = None
    cpu_flags: str | None = None
    versions: dict[str, str] | None = None
    reason: str | None = None
    unfinished: str | None = None
    files: list[str] = []
    failed_clips: dict[str, str] = {}
    train_s: Seconds | None = None
    search_s: Seconds | None = None


class _Mixed(_Section):
    keep_fp32: list[str]
    layers: Count
    evaluations: Count


class _Parity(_Section):
    simulated: list[float]
    deployed: list[float]


class _Notes(_Section):
    parity: _Parity | None = None
    parity_max_abs: float | None = None
    kernel_rms: float | None = None
    quantization_rms: float | None = None
    outside_share: float | None = None
    fp32_layers: list[str] = []
    mixed: _Mixed | None = None
    run_by: dict[str, Count] | None = None
    fallbacks: dict[str, Count] | None = None


class _Facts(_Section):
    size_bytes: Count
    weights_bytes: Count
    isa: str
    int8_mac_share: Share
    notes: _Notes


class _Build(_Record):
    artifact: _Facts | None = None


class _Memory(_Record):
    peak_rss_mb: Annotated[float, Field(ge=0)] = 0.0


class _Latency(_Section):
    blocks_ms: list[list[float]] = []
    load_average: float | None = None
    host: str = ""
    cpu_flags: str = ""
    joules: Annotated[float, Field(ge=0)] | None = None
    compute_ms: list[float] = []
    throughput_clips_s: Annotated[float, Field(ge=0)] | None = None
    error: str | None = None


class _Measure(_Record):
    latency: dict[str, _Latency] = {}


class _Streams(_Section):
    streams: Annotated[int, Field(gt=0, lt=2**31)]
    clips_s: Annotated[float, Field(ge=0)]
    calls: Count
    p50_ms: float | None
    p95_ms: float | None


class _Served(_Section):
    cold_starts_s: list[Seconds] = []
    streams: list[_Streams] = []
    error: str | None = None


class _Serve(_Record):
    served: dict[str, _Served] = {}


class _Trial(_Record):
    settings: dict[str, Any] = {}
    val_mae: float | None = None


class _State(_Section):
    sqnr_db: float | None
    delta_mae: float | None
    delta_low: float | None
    delta_high: float | None


class _Layer(_Section):
    layer: str
    macs: Count
    alone: _State
    all_but: _State
    range: dict[str, float | None]


class _Sensitivity(_Record):
    layers: list[_Layer] = []
    n_clips: Count = 0
    fp32_mae: float = 0.0
    sqnr_of: str = ""
    split: str = ""
    weight_bits: int = 0
    all_sqnr_db: float | None = None
    all_delta_mae: float | None = None


class _Costs(_Record):
    blocks_ms: dict[str, list[list[float]]] = {}
    frames: Count = 0
    image_size: Count = 0
    threads: Count = 0


class _Split(_Section):
    clips: Count
    mean: float | None = None
    min: float | None = None
    max: float | None = None


class _Data(_Record):
    digest: str
    splits: dict[str, _Split]


class _Phases(_Section):
    phases: dict[str, Seconds]
    total: Seconds
    started: Seconds


class _Clip(_Section):
    frames: Count
    image_size: Count


class _Built(_Section):
    macs_per_clip: Count | None = None
    needs: list[str] = []
    notes: dict[str, Any] = {}


class _Description(_Section):
    clip: _Clip
    built: _Built
    isa: str
    versions: dict[str, str]


_OF_KIND: dict[str, type[_Section]] = {
    "build": _Build, "memory": _Memory, "measure": _Measure, "serve": _Serve, "trial": _Trial,
    "sensitivity": _Sensitivity, "costs": _Costs, "data": _Data, "phases": _Phases, "artifact": _Description,
}  # fmt: skip


def is_record(kind: str, record: Any) -> bool:
    """Whether what a file holds can be the record of a unit of this kind, of the phases of a run ("phases"), or what an
    artifact says of itself ("artifact")."""
    try:
        _OF_KIND.get(kind, _Record).model_validate(record)
    except (ValidationError, RecursionError):
        return False
    return True
