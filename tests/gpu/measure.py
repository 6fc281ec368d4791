"""All that a bare machine with an NVIDIA GPU can show in nine minutes, by torch (2.11 or newer), Triton and numpy:

    PYTHONPATH=src:tests python tests/gpu/measure.py --kit KIT --to gpu.json

ceilings (copies, products of FP16 and of INT8); `qray::int8_conv2d` against integers, and its tiles on the layers of
ResNet-18, beside the same convolution of PyTorch in FP16; the tests beside this file, where the packages are there that
they take (`pytest -m gpu`; all of qray's but Ray); then the kit's own bench.py in the time that is left (`qray kit OUT
--device cuda --to KIT`), whose measured.json beside gpu.json becomes rows (`qray run table --measured`). gpu.json is
written anew after each phase.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.int8_convolutions import CASES, Case, arguments, drawn, wanted

from qray.engines.int8_conv_triton import TILES, Tile, launch, tile_of

#: Seconds that a call is repeated for, its shortest and its longest.
REPEATS = 20
DRAWN = 24
BATCHES = (1, 8, 64)
#: Stages of ResNet-18 on 112 x 112: channels and size; each by clips of 8 frames.
STAGES = ((64, 28), (128, 14), (256, 7), (512, 4))
CANDIDATES = [
    *(tile for _, tile in TILES), Tile(64, 64, 64, 4), Tile(64, 64, 128, 4), Tile(128, 64, 128, 8),
    Tile(128, 128, 128, 8), Tile(64, 32, 128, 4), Tile(32, 32, 128, 4),
]  # fmt: skip
SPLITS = (1, 2, 4, 8)


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Median of a call, by events of the GPU's own clock."""
    call()
    found = []
    for _ in range(REPEATS):
        if device != "cuda":
            began = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - began))
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return float(np.median(found))


def ceilings(device: str, size: int = 8192) -> dict[str, float]:
    """What the machine can do at most: gigabytes a second, and tera-operations a second."""
    source = torch.zeros(size * size, dtype=torch.uint8)
    there, other = source.to(device), source.to(device)
    half = torch.randn(size, size, dtype=torch.float16, device=device)
    codes = torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device)
    found = {"copy_gb_s": 2 * size**2 / 1e6 / milliseconds(lambda: there.copy_(other), device)}
    found["pageable_gb_s"] = size**2 / 1e6 / milliseconds(lambda: there.copy_(source), device)
    if device == "cuda":
        pinned = source.pin_memory()
        found["pinned_gb_s"] = size**2 / 1e6 / milliseconds(lambda: there.copy_(pinned, non_blocking=True), device)
    operations = 2 * size**3 / 1e9
    found["fp16_tera_s"] = operations / milliseconds(lambda: half @ half, device)
    found["int8_tera_s"] = operations / milliseconds(lambda: torch._int_mm(codes, codes), device)
    return found


def exact(device: str, count: int = DRAWN) -> dict[str, bool]:
    """Whether the kernel gives what integers give, to the last bit, by the name of the convolution."""
    cases = CASES | {f"seed {seed}": drawn(torch.Generator().manual_seed(seed)) for seed in range(count)}
    return {name: bool(np.array_equal(_launch(case, device)(None).cpu().numpy(), wanted(case, arguments(case))))
            for name, case in cases.items()}  # fmt: skip


def _launch(case: Case, device: str) -> Callable[[Tile | None], torch.Tensor]:
    moved = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in arguments(case).items()}
    return lambda tile: launch(**moved, tile=tile)


def layer(channels: int, size: int, clips: int) -> Case:
    """A convolution of a stage, with a residual and ReLU."""
    shape = (8 * clips, channels, size, size)
    return Case(shape, (channels, channels, 3, 3), padding=(1, 1), residual=True, low=0.0)


def tiles(case: Case, device: str, until: float) -> dict[str, Any]:
    """Milliseconds of a layer by tile, the one that qray takes named, and those of PyTorch's convolution in FP16."""
    run, found = _launch(case, device), dict[str, float]()
    _, channels, rows, columns = case.x
    taken = tile_of(case.x[0] * rows * columns, channels, channels * 9)
    tried = [Tile(t.m, t.n, t.k, t.warps, t.stages, splits) for t in CANDIDATES for splits in SPLITS]
    for tile in dict.fromkeys([taken, *(tried if device == "cuda" else tried[:2])]):
        if time.monotonic() > until:
            break
        try:
            found[str(tile)] = milliseconds(lambda tile=tile: run(tile), device)
        except Exception as error:  # a tile that does not fit is no tile for this GPU
            print(f"  {tile}: {type(error).__name__}", flush=True)
    x, weight = (torch.randn(shape, device=device).to(torch.float16, memory_format=torch.channels_last)
                 for shape in (case.x, case.weight))  # fmt: skip
    half = milliseconds(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device)
    return {"taken": str(taken), "best": min(found, key=found.__getitem__, default=None), "ms": found, "fp16_ms": half}


def tests(seconds: float) -> str:
    """What pytest says of the tests beside this file, or why it could not be asked. They take packages that a bare
    machine may not have."""
    if missing := [name for name in ("pytest", "pydantic", "torchao", "av") if find_spec(name) is None]:
        return f"not run: {', '.join(missing)} not installed"
    command = [sys.executable, "-m", "pytest", "--noconftest", "-o", "addopts=", "-q", "-m", "gpu",
               str(Path(__file__).parent)]  # fmt: skip
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=max(1.0, seconds), check=False)
    except subprocess.TimeoutExpired:
        return f"not through in {seconds:.0f} s"
    return (done.stdout.strip().splitlines() or ["nothing"])[-1]


def main() -> int:
    """The whole of it; 1 where a convolution is not exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, help="a kit for cuda; without one nothing of networks is measured")
    parser.add_argument("--to", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda", help="cpu, with TRITON_INTERPRET=1, tries this program itself")
    given = parser.parse_args()
    began, small = time.monotonic(), given.device != "cuda"
    until = began + 60 * given.minutes
    about = "none" if small else f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_capability()}"
    found: dict[str, Any] = {"gpu": about, "torch": torch.__version__}

    def keep(name: str, value: object) -> None:
        found[name] = value
        found["seconds"] = time.monotonic() - began
        unfinished = given.to.with_name(f".{given.to.name}")
        unfinished.write_text(json.dumps(found, indent=1), encoding="utf-8")
        unfinished.replace(given.to)
        print(f"{name}: {str(value)[:200]}", flush=True)

    keep("ceilings", ceilings(given.device, 64 if small else 8192))
    keep("exact", exact(given.device, 1 if small else DRAWN))
    # Half of the time at most: networks are what counts.
    sweep_until = began + 30 * given.minutes
    for clips in (1,) if small else BATCHES:
        for channels, size in ((16, 4),) if small else STAGES:
            case = layer(channels, size, clips)
            keep(f"{channels} channels, {clips} clips", tiles(case, given.device, sweep_until))
    keep("tests", tests((until - time.monotonic()) / 2))
    if given.kit is not None:
        left = (until - time.monotonic()) / 60
        command = [sys.executable, given.kit / "bench.py", "--name", "gpu", "--limit", f"{left:.2f}", "--to",
                   given.to.with_name("measured.json").resolve()]  # fmt: skip
        keep("bench.py", subprocess.run(list(map(str, command)), check=False).returncode)
    return 0 if all(found["exact"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
