"""`qray import`: from a file, or code, to a folder that a study can name, each step of it checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qray.errors import UsageError
from qray.storage.place import Place, place_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from qray.model.regressor import VideoRegressor
    from qray.study_model import Channels, ClipSpec, Imported

FROM_TRAIN = "from_train"
Names = Annotated[list[str] | None, typer.Option(metavar="PATTERN")]


def import_model(
    source: Annotated[Path | None, typer.Argument(help=".pt, .pth, .safetensors, .onnx or .pt2 file.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to make, which a study names: `model: FOLDER`.")] = Path(
        "models/imported"
    ),
    arch: Annotated[
        str | None, typer.Option("--arch", help="Architecture of a checkpoint: torchvision/NAME or timm/NAME.")
    ] = None,
    code: Annotated[str | None, typer.Option("--code", help="package.module:function that makes the network.")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run the code that --code names.")] = False,
    data: Annotated[str | None, typer.Option("--data", help="Data set folder or URI, to check the model on.")] = None,
    expect: Annotated[
        Path | None, typer.Option("--expect", help="CSV of your own predictions: clip, prediction.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0, help="Largest difference to --expect; default: 5 % of its spread."),
    ] = None,
    expect_clips: Annotated[
        int, typer.Option("--expect-clips", min=1, help="Clips of --expect that are compared.")
    ] = 32,
    layout: Annotated[
        str | None, typer.Option("--layout", help="BCTHW, BTCHW, BTHWC or frames (B*T, 3, H, W).")
    ] = None,
    span: Annotated[str, typer.Option("--range", help="0-255 or 0-1, before mean and std.")] = "0-255",
    mean: Annotated[
        str, typer.Option("--mean", help="Of the channels, as --colour has them; or from_train.")
    ] = FROM_TRAIN,
    std: Annotated[str | None, typer.Option("--std", help="The same; not with from_train.")] = None,
    colour: Annotated[str, typer.Option("--colour", help="rgb or bgr.")] = "rgb",
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Default: the graph's own, or 32.")] = None,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Every so manieth frame.")] = 2,
    size: Annotated[
        int | None, typer.Option("--size", min=16, help="Default: the graph's own, or the videos'.")
    ] = None,
    sampling: Annotated[str, typer.Option("--sampling", help="window, first or uniform.")] = "window",
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows that an evaluation averages.")] = 3,
    scale: Annotated[float, typer.Option("--scale", help="prediction = scale * output + shift.")] = 1.0,
    shift: Annotated[float, typer.Option("--shift", help="See --scale.")] = 0.0,
    state_key: Annotated[str | None, typer.Option("--state-key", help="Dotted key of the weights in the file.")] = None,
    missing_ok: Names = None,
    unexpected_ok: Names = None,
    fresh_head: Annotated[bool, typer.Option("--fresh-head", help="Make a new head, to be trained.")] = False,
    engines: Annotated[
        bool, typer.Option("--engines/--no-engines", help="Try what each engine can do with it.")
    ] = True,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of the data set, as in a study: --set data.target_column=EF.")
    ] = None,
) -> None:
    """Import a trained model: match its weights, check its input and your own predictions, and try every engine."""
    from qray.importing.checks import STATISTICS_CLIPS, as_read, compare_with_own, look, pixel_statistics
    from qray.importing.sources import clip_of, network_of, open_source
    from qray.terminal import open_console

    console = open_console(stderr=True, soft_wrap=True)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    if (mean == FROM_TRAIN or expect is not None) and data is None:
        raise UsageError("--data is needed: mean and std are measured on TRAIN clips (or give --mean and --std), and "
                         "--expect is compared on its videos")  # fmt: skip
    if out.is_dir() and any(out.iterdir()) and not (out / "model.yaml").is_file():
        raise UsageError(f"--out: {out} holds something else than an imported model; name another folder")
    origin = open_source(source, arch, code, allow_code, layout)
    if data is not None:
        say(f"checking the videos of {data} ...")
    clips = None if data is None else _manifest(place_of(data, "--data"), settings or [])
    clip = clip_of(origin, clips, frames, size, stride, sampling, windows)
    say(
        f"{origin.name}: takes {origin.layout}, {clip.frames} frames of {clip.image_size} x {clip.image_size} pixels "
        f"at stride {clip.stride} ({clip.sampling}, {clip.windows} in evaluation)"
    )

    @cache
    def measured() -> tuple[np.ndarray, np.ndarray]:
        assert clips is not None
        return pixel_statistics(clips, clip)

    def from_train(span: str, colour: str) -> tuple[Channels, Channels]:
        mean, std = measured()
        return as_read(mean, span, colour), as_read(std, span, colour)

    if mean == FROM_TRAIN and std is not None:
        raise UsageError("--std belongs to a given --mean; from_train measures both")
    if mean == FROM_TRAIN:
        means, stds = from_train(span, colour)
    else:
        means, stds = _channels("--mean", mean), _channels("--std", std or "1")
    chosen = {"layout": origin.layout, "range": span, "colour": colour, "mean": means, "std": stds}
    facts = {"folder": str(out.resolve()), "source": origin.name, "input": chosen, "scale": scale, "shift": shift,
             "fresh_head": fresh_head}  # fmt: skip
    where = f" (measured on {STATISTICS_CLIPS} TRAIN clips)" if mean == FROM_TRAIN else ""
    say(f"input: {colour}, {span}, less mean {_listed(means)}, over std {_listed(stds)}{where}")
    network, model, program = network_of(
        origin, facts, clip, source, state_key, missing_ok, unexpected_ok, fresh_head, say
    )
    looked = look(network, clip, clips, say) if clips is not None and not fresh_head else {}
    found: dict[str, Any] = {"checked": looked}
    if expect is not None and clips is not None:
        if fresh_head:
            raise UsageError("--expect: a fresh head predicts nothing yet")
        found["checked"]["expected"] = compare_with_own(
            expect, expect_clips, tolerance, model, clip, network, clips, from_train, say
        )
    elif not fresh_head:
        say("nothing has compared this with your own predictions: --expect CSV does, clip by clip", "yellow")
    _write(out, network, model, clip, program, (origin.told or {}) | found, engines, say)
    say(f"Model: {out}; run a study on it with `qray run all --model {out}" + (f" --data {data}`" if data else "`"))


def _channels(flag: str, text: str) -> Channels:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise UsageError(f"{flag} {text!r}: expected one number, or one for each channel")
    r, g, b = values * 3 if len(values) == 1 else values
    return r, g, b


def _listed(values: Channels) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _manifest(data: Path | Place, settings: list[str]) -> pd.DataFrame:
    from qray.data.manifest import read_manifest
    from qray.study_files import load_study

    return read_manifest(data, load_study("quickstart", settings).data).clips


def _write(
    out: Path, network: VideoRegressor, model: Imported, clip: ClipSpec, program: bytes | None, told: dict[str, Any],
    engines: bool, say: Callable[..., None],
) -> None:  # fmt: skip
    """The folder, which appears complete or not at all."""
    from safetensors.torch import save_file

    from qray.atomic import atomic_path
    from qray.engines.programs import without_weights
    from qray.importing.engines import try_engines
    from qray.measure.host import versions
    from qray.model.folder import NETWORK, WEIGHTS, sha256_of, write_model_yaml
    from qray.model.imported import imported_checkpoint

    network.take(model)
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        save_file(
            {key: value.detach().contiguous().clone() for key, value in network.state_dict().items()}, folder / WEIGHTS
        )
        hashes: dict[str, Any] = {"weights_sha256": sha256_of(folder / WEIGHTS)}
        if program is not None:
            (folder / NETWORK).write_bytes(without_weights(program, NETWORK))
            hashes["network_sha256"] = sha256_of(folder / NETWORK)
        model = model.model_copy(update=hashes)
        # What is tried is what a run will read.
        checkpoint = imported_checkpoint(model.model_copy(update={"folder": str(folder)}))
        can = try_engines(model, clip, checkpoint, say) if engines else {}
        write_model_yaml(folder, model, clip, {**told, "engines": can, "versions": versions()})
