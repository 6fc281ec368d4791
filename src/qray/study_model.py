"""What the network is and what it sees: sections of a study. A network is trained here, or was imported."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from qray.model.catalog import BACKBONES
from qray.study_verdict import PositiveInt, Section, known

#: A batch holds several, Arrow's arrays at most 2 GiB of bytes each.
LARGEST_CLIP_BYTES = 2**31


class ClipSpec(Section):
    """How a video becomes a clip of `frames` frames of `image_size` x `image_size` pixels.

    sampling "uniform": frames spread evenly over the whole video. "window": `frames` frames at `stride`, at a random
    start in training and at `eval_windows` evenly spaced starts in evaluation, whose predictions are averaged. "first":
    the first `frames` frames at `stride`.
    """

    frames: PositiveInt = 16
    image_size: int = Field(64, ge=16, lt=2**31)
    sampling: Literal["uniform", "window", "first"] = "window"
    stride: PositiveInt = 4
    eval_windows: PositiveInt = 3

    @model_validator(mode="after")
    def _fits(self) -> ClipSpec:
        if (size := self.windows * self.frames * self.image_size**2 * 3) > LARGEST_CLIP_BYTES:
            raise ValueError(f"{self.windows} windows of {self.frames} frames of {self.image_size} x {self.image_size} "
                             f"pixels are {size / 2**30:,.1f} GiB a clip, of which qray takes at most 2")  # fmt: skip
        return self

    @property
    def windows(self) -> int:
        """Number of windows a video is evaluated on."""
        return self.eval_windows if self.sampling == "window" else 1

    def single_window(self) -> ClipSpec:
        """The same clips evaluated on one window, the middle one: for calibration and for choosing by VAL."""
        return self.model_copy(update={"eval_windows": 1})

    def frames_read(self) -> dict[str, Any]:
        """What training and builds depend on: how many windows an evaluation averages has no part in them."""
        return self.model_dump(mode="json", exclude={"eval_windows"})


class Model(Section):
    """A backbone on each frame and pooling over time, or a backbone on whole clips, which pools itself; linear head.

    `width`, channels of the first stage, and `pooling` are by default the backbone's own, and mean_std for one on
    frames; null where it has no other width, or pools itself.
    """

    backbone: Annotated[str, known(BACKBONES)] = "resnet18"
    width: int | None = Field(None, ge=4, le=4096)
    pooling: Literal["mean", "mean_std", "max_min"] | None = None
    weights: Literal["none", "imagenet", "kinetics"] = "none"
    head_init: Literal["default", "zero"] = "default"
    standardize_target: bool = True

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_the_backbone(cls, values: Any) -> Any:
        name = values.get("backbone", "resnet18") if isinstance(values, dict) else None
        if not isinstance(name, str) or (chosen := BACKBONES.get(name)) is None:
            return values
        defaults = {"width": chosen.width, "pooling": "mean_std" if chosen.takes == "frames" else None}
        return defaults | {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _exists(self) -> Model:
        has = BACKBONES[self.backbone]
        if has.width is None and self.width is not None:
            raise ValueError(f"backbone {self.backbone} has one width only; leave `width` out")
        if has.takes == "clips" and self.pooling is not None:
            raise ValueError(f"backbone {self.backbone} sees whole clips and pools itself; leave `pooling` out")
        if self.weights != "none" and self.weights != has.weights:
            raise ValueError(f"weights of backbone {self.backbone} are {has.weights or 'none'}, not {self.weights}")
        if self.weights != "none" and self.width != has.width:
            raise ValueError(f"weights: {self.weights} exist only for width: {has.width}")
        return self


Channels = tuple[float, float, float]


class Input(Section):
    """What an imported network takes: float32 of the frames that `clip` names, in the layout, range and colour order
    that it was trained with, less `mean` and over `std` of each channel, both in units of `range`.

    "frames" is (B*T, 3, H, W); what comes out for each frame is averaged over time.
    """

    layout: Literal["BCTHW", "BTCHW", "BTHWC", "frames"]
    range: Literal["0-255", "0-1"] = "0-255"
    colour: Literal["rgb", "bgr"] = "rgb"
    mean: Channels = (0.0, 0.0, 0.0)
    std: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ] = (1.0, 1.0, 1.0)  # fmt: skip


class Imported(Section):
    """A network of the user's, as `qray import` left it in `folder`, whose model.yaml says so too.

    source: "torchvision/NAME" or "timm/NAME", of which `weights.safetensors` holds the weights; or "pt2", "onnx" or
    "code", of which `network.pt2` holds the graph. prediction = scale * output + shift.
    """

    folder: str
    source: str = Field(pattern=r"^((torchvision|timm)/[A-Za-z0-9_.]+|pt2|onnx|code)$")
    input: Input
    scale: float = 1.0
    shift: float = 0.0
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    network_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    fresh_head: bool = False

    @property
    def backbone(self) -> str:
        """What the table calls it."""
        return self.source

    @property
    def trainable(self) -> bool:
        """Whether its training can go on."""
        return self.source not in ("pt2", "onnx")

    @property
    def untrainable(self) -> str:
        """Why it cannot."""
        return f"the model was imported as {self.source}, a graph for inference, of which nothing can be trained"

    def identity(self) -> dict[str, Any]:
        """What a unit depends on: wherever the folder lies."""
        return self.model_dump(mode="json", exclude={"folder"})


def _kind(value: Any) -> str:
    imported = isinstance(value, Imported) or (isinstance(value, dict) and "folder" in value)
    return "imported" if imported else "trained"


#: Either of the two; told apart by the key `folder`.
Network = Annotated[
    Annotated[Model, Tag("trained")] | Annotated[Imported, Tag("imported")], Discriminator(_kind)
]  # fmt: skip
NETWORK: TypeAdapter[Model | Imported] = TypeAdapter(Network)
