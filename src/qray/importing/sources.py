"""Where a model comes from, and the network with its weights that is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from qray.errors import QrayError, UsageError
from qray.importing.checkpoints import best_match, check, read_checkpoint
from qray.importing.graphs import (
    Shape,
    check_same,
    clip_sizes,
    example_of,
    layout_of,
    read_code,
    read_onnx,
    read_pt2,
    to_program,
)
from qray.model.imported import layout_of_architecture, whole_network
from qray.model.regressor import LAYOUTS, VideoRegressor
from qray.study_model import ClipSpec, Imported

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Source:
    """Where a network comes from. name: as `Imported.source` has it; sizes: of the clips that a graph is made for;
    module: of a graph or of code, and reference: what computes what it computed where it came from; rows: how many it
    takes at once; told: facts for model.yaml."""

    name: str
    layout: str
    sizes: dict[str, int]
    module: Any = None
    reference: Callable[[Any], Any] | None = None
    rows: int = 1
    told: dict[str, Any] | None = None


def open_source(
    source: Path | None, arch: str | None, code: str | None, allow_code: bool, layout: str | None
) -> Source:  # fmt: skip
    """What kind of source it is; graphs and code are read. layout: as it was given, by which code alone goes.

    Raises:
        UsageError: there is no such source, or it takes another layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: expected one of {', '.join(LAYOUTS)}")
    found = _open(source, arch, code, allow_code, layout or "BCTHW")
    if layout not in (None, found.layout):
        raise UsageError(f"--layout {layout}: the network takes {found.layout}")
    return found


def _open(source: Path | None, arch: str | None, code: str | None, allow_code: bool, of_code: str) -> Source:
    if code is not None:
        if not allow_code:
            raise UsageError(f"--code {code} runs code of yours; say so with --allow-code")
        module, sha256 = read_code(code)
        return Source("code", of_code, {}, module, told={"code": code, "code_sha256": sha256})
    if source is None:
        raise UsageError("name a file to import, or --code package.module:function")
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    told = {"file": source.name}
    if source.suffix == ".onnx":
        module, shape, run = read_onnx(source)
        return Source("onnx", *_contract(shape, source.name), module, run, shape[0] or 1, told)
    if source.suffix == ".pt2":
        graph, shape = read_pt2(source)
        return Source("pt2", *_contract(shape, source.name), graph, graph, shape[0] or 1, told)
    if arch is None:
        raise UsageError(
            f"{source}: a checkpoint holds weights and no network; name its architecture, such as --arch "
            "torchvision/r2plus1d_18 or --arch timm/resnet18, or give its code with --code"
        )
    return Source(arch, layout_of_architecture(arch), {}, told=told)


def _contract(shape: Shape, name: str) -> tuple[str, dict[str, int]]:
    layout = layout_of(shape, name)
    return layout, clip_sizes(shape, layout)


def clip_of(
    origin: Source, clips: pd.DataFrame | None, frames: int | None, size: int | None, stride: int, sampling: str,
    windows: int,
) -> ClipSpec:  # fmt: skip
    """How clips are read: as given, as a graph was made for, as the videos are, or as EchoNet-Dynamic's own code.

    Raises:
        UsageError: what was given is none, or not what the graph was made for.
    """
    for flag, given, own in (
        ("--frames", frames, origin.sizes.get("frames")),
        ("--size", size, origin.sizes.get("image_size")),
    ):
        if given is not None and own is not None and given != own:
            raise UsageError(f"{flag} {given}: the graph was made for {own}")
    shown = 112
    if clips is not None and clips["width"].nunique() == 1 and clips["width"].equals(clips["height"]):
        shown = int(clips["width"].iloc[0])
    wanted = {
        "frames": frames or origin.sizes.get("frames", 32), "image_size": size or origin.sizes.get("image_size", shown),
        "stride": stride, "sampling": sampling, "eval_windows": windows,
    }  # fmt: skip
    try:
        return ClipSpec.model_validate(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{str(first['loc'][0]).replace('image_', '')}: {first['msg']}") from None


def network_of(
    origin: Source, facts: dict[str, Any], clip: ClipSpec, source: Path | None, state_key: str | None,
    missing_ok: list[str] | None, unexpected_ok: list[str] | None, fresh_head: bool, say: Callable[..., None],
) -> tuple[VideoRegressor, Imported, bytes | None]:  # fmt: skip
    """The network with its weights, what describes it (without its hashes), and its program if it is a graph."""
    program: bytes | None = None
    name = source.name if source else str((origin.told or {}).get("code"))
    if origin.module is not None:
        example = example_of(origin.layout, clip.frames, clip.image_size)
        program = to_program(origin.module, example, origin.layout, origin.name == "code", name)
    unhashed = {"weights_sha256": "0" * 64, "network_sha256": None if program is None else "0" * 64}
    try:
        model = Imported.model_validate(facts | unhashed)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{first['loc'][-1]}: {first['msg']}") from None
    torch.manual_seed(0)
    network = VideoRegressor(model, program=program)
    if program is None:
        assert source is not None
        whole, head = whole_network(origin.name)
        result = best_match(read_checkpoint(source), whole.state_dict(), head, state_key, source)
        for line in result.lines():
            say(line)
        check(result, missing_ok or (), unexpected_ok or (), head if fresh_head else None)
        whole.load_state_dict({want: result.given[name] for want, name in result.found.items()}, strict=False)
        own = {f"head{key.removeprefix(head)}" if key.startswith(f"{head}.") else f"backbone.{key}": value
               for key, value in whole.state_dict().items()}  # fmt: skip
        network.load_state_dict(own, strict=False)
        return network.eval(), model, None
    network.eval()
    reference = origin.reference or origin.module.eval()
    if origin.rows > len(example):
        raise QrayError(
            f"{name}: was exported for {origin.rows} clips at once; export it with a dynamic first dimension"
        )
    one = example[: origin.rows]
    with torch.inference_mode():
        ours = network.head(network.backbone(one))
        theirs = torch.as_tensor(reference(one.numpy() if origin.name == "onnx" else one))
    difference = check_same(name, ours, theirs)
    say(f"as a graph of any number of clips it gives what {name} gives (largest difference {difference:.2g})")
    return network, model, program
