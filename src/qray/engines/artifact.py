"""The artifact: what would be shipped. One folder, one artifact.json, one protocol to build, load and predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from qray.atomic import write_json
from qray.errors import QrayError
from qray.json_text import read_json
from qray.measure.isa import native_isa, range_is_reduced
from qray.reasons import reason_of
from qray.study import ClipSpec, Variant

if TYPE_CHECKING:
    # Loading an artifact of an engine of its own must not cost the memory of PyTorch.
    import torch

    from qray.model.regressor import VideoRegressor

FORMAT = 2
#: uint8 (B, T, H, W, 3) RGB clips -> float32 (B,) predictions in target units, for any B >= 1.
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class BuildRequest:
    """What a variant is made of.

    model: trained, on the CPU, in eval mode. calibration: uint8 (b, T, H, W, 3) batches of TRAIN clips, which ptq
    observes; empty for other methods. qat_state and qat_settings: state_dict of the trained QAT module and the
    `pt2e.QatSettings` it was prepared with, for method `qat`. validation: batches of VAL clips, on which INT8 methods
    compare FP32, what was simulated and what is deployed. isa: the instruction set (of `ISA_FLAGS`) to build for, by
    default this CPU's. seed: of what a build draws at random.
    """

    variant: Variant
    model: VideoRegressor
    clip: ClipSpec
    calibration: Sequence[torch.Tensor] = ()
    qat_state: dict[str, torch.Tensor] | None = None
    qat_settings: dict[str, Any] | None = None
    validation: Sequence[torch.Tensor] = ()
    isa: str = field(default_factory=native_isa)
    seed: int = 0

    @property
    def reduce_range(self) -> bool:
        """Whether 8-bit weights keep to half their range, so that no CPU of this instruction set overflows."""
        return range_is_reduced(self.isa, self.variant.weight_bits) and not self.variant.u8u8

    def example(self) -> torch.Tensor:
        """A clip batch to trace with: uint8 (2, T, H, W, 3), seeded noise."""
        import torch

        generator = torch.Generator().manual_seed(0)
        size = self.clip.image_size
        return torch.randint(0, 256, (2, self.clip.frames, size, size, 3), dtype=torch.uint8, generator=generator)


@dataclass(frozen=True)
class Built:
    """What an engine's `build` left in the artifact's folder.

    model_file: name of the file that `load` opens. weights_bytes: bytes of parameters as stored in the artifact (codes,
    scales and biases). int8_mac_share: share of multiply-accumulates that the engine executes in INT8, read from the
    graph it executes; macs_per_clip: all multiply-accumulates of convolutions and linear layers for one clip.
    needs: what of `host.capabilities` a CPU must have to compute what was built. notes: JSON-ready facts worth a column
    or a log line, among them those of `parity.parity_notes`.
    """

    model_file: str
    weights_bytes: int
    int8_mac_share: float
    macs_per_clip: int
    needs: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk, described by its artifact.json."""

    folder: Path
    variant: Variant
    key: str
    clip: ClipSpec
    isa: str
    built: Built
    versions: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """Bytes of the model files as shipped, artifact.json left out."""
        return sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file() and f.name != "artifact.json")

    @property
    def facts(self) -> dict[str, Any]:
        """What the record of its build says of it, so that a run can be judged where its artifacts are not."""
        built = self.built
        return {"size_bytes": self.size_bytes, "weights_bytes": built.weights_bytes, "isa": self.isa,
                "int8_mac_share": built.int8_mac_share, "notes": built.notes}  # fmt: skip


def write_artifact_json(artifact: Artifact) -> None:
    """Describe the artifact in its own folder."""
    record = {
        "format": FORMAT,
        "key": artifact.key,
        "variant": artifact.variant.model_dump(mode="json"),
        "clip": artifact.clip.model_dump(mode="json"),
        "isa": artifact.isa,
        "input": "uint8 (B, T, H, W, 3), RGB",
        "output": "float32 (B,), target units",
        "built": asdict(artifact.built),
        "size_bytes": artifact.size_bytes,
        "versions": artifact.versions,
    }
    write_json(artifact.folder / "artifact.json", record)


#: What stands beside the study's own sections, of those types and no others.
_BUILT, _VERSIONS = TypeAdapter(Built), TypeAdapter(dict[str, str])


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact's description, whoever wrote it.

    Raises:
        QrayError: the folder holds no artifact.json, or one of another format.
    """
    path = folder / "artifact.json"
    if not path.is_file():
        raise QrayError(f"{folder}: not an artifact (no artifact.json); expected a folder such as OUT/artifacts/KEY")
    try:
        record = read_json(path)
        if record["format"] != FORMAT:
            raise QrayError(f"{path}: format {record['format']}, this qray reads format {FORMAT}; build it again")
        return Artifact(
            folder=folder,
            variant=Variant.model_validate(record["variant"]),
            key=str(record["key"]),
            clip=ClipSpec.model_validate(record["clip"]),
            isa=str(record["isa"]),
            built=_BUILT.validate_python(record["built"]),
            versions=_VERSIONS.validate_python(record["versions"]),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        why = reason_of(str(error))
        raise QrayError(f"{path}: not readable as an artifact's description ({why}); build it again") from None
