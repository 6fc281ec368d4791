"""Write the synthetic data set in the EchoNet-Dynamic layout: in parallel, seeded clip by clip, resumable."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from qray.atomic import atomic_path, write_json, write_text
from qray.errors import QrayError
from qray.measure.host import usable_cpus
from qray.progress import progress
from qray.synthetic.phantom import FPS, IMAGE_SIZE

#: Raise when the same seed gives other clips, so that an older set is not extended with a newer one's.
GENERATOR_VERSION = 1
SETTINGS_FILE = "synthetic.json"
#: Facts of finished clips and videos in the making; Videos/ never holds half a file, whenever the power goes.
WORKSHOP = ".facts"
#: MJPEG quantiser: about 0.5 MB a clip, the size of EchoNet-Dynamic's own.
JPEG_QUANTISER = 5
CLIPS_PER_CALL = 8
FILE_LIST_COLUMNS = (
    "FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames", "Split",
)  # fmt: skip
TRACING_COLUMNS = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")


def clip_name(seed: int, split: str, number: int) -> str:
    """EchoNet-like name: 0X and 16 hexadecimal digits, different for every (seed, split, number)."""
    digits = np.random.SeedSequence((seed, *split.encode(), number)).generate_state(1, np.uint64)[0]
    return f"0X{int(digits):016X}"


def write_mjpeg(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write grey frames uint8 (N, H, W) as an MJPEG AVI."""
    import av

    n, height, width = frames.shape
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        stream.codec_context.thread_count = 1
        # Standard Huffman tables: twice as fast to write as optimal ones, a tenth larger.
        stream.codec_context.options = {"huffman": "default"}
        stream.codec_context.qmin = stream.codec_context.qmax = JPEG_QUANTISER
        # One frame for all, with colour planes that stay grey: the encoder is done with it when it returns.
        frame = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 128, np.uint8), format="yuvj420p")
        luma = np.frombuffer(frame.planes[0], np.uint8).reshape(height, frame.planes[0].line_size)[:, :width]
        for number in range(n):
            luma[:] = frames[number]
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _make(root: Path, seed: int, split: str, numbers: list[int]) -> list[dict[str, Any]]:
    """Make the clips that are not there yet; the facts of each are kept for the lists, which are written last."""
    from qray.synthetic.render import make_echo

    facts = []
    for number in numbers:
        name = clip_name(seed, split, number)
        video, note = root / "Videos" / f"{name}.avi", root / WORKSHOP / f"{name}.json"
        if video.exists() and note.exists():
            facts.append(json.loads(note.read_text(encoding="utf-8")))
            continue
        echo = make_echo(np.random.default_rng((seed, *split.encode(), number)))
        made = root / WORKSHOP / video.name
        with atomic_path(made) as temporary:
            write_mjpeg(temporary, echo.frames)
        made.replace(video)
        heart = echo.heart
        row = [name, round(heart.ef, 6), round(heart.esv, 6), round(heart.edv, 6)]
        row += [IMAGE_SIZE, IMAGE_SIZE, FPS, len(echo.frames), split]
        traced = [
            [f"{name}.avi", *[round(float(x), 4) for x in chord], frame]
            for frame, chords in echo.tracings.items()
            for chord in chords
        ]
        fact = {"row": row, "tracings": traced}
        write_json(note, fact)
        facts.append(fact)
    return facts


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker() -> None:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    # A pool's workers outlive a parent that was killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _settings(root: Path) -> dict[str, Any] | None:
    """What the set was made with; None where there is none, {} where the file cannot be read."""
    try:
        found = json.loads((root / SETTINGS_FILE).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}


def _check_settings(root: Path, seed: int) -> None:
    found, wanted = _settings(root), {"generator": GENERATOR_VERSION, "seed": seed}
    if root.exists() and not root.is_dir():
        raise QrayError(f"{root} is a file; name a folder for the synthetic set")
    if found is not None:
        if found != wanted:
            raise QrayError(
                f"{root} holds a synthetic set made with {found}, this one wants {wanted}: name another folder"
            )
    elif root.is_dir() and any(p for p in root.iterdir() if not p.name.startswith(".")):
        raise QrayError(f"{root} is not empty and not a synthetic set (no {SETTINGS_FILE}): name another folder")
    else:
        write_json(root / SETTINGS_FILE, wanted)


def is_complete(root: Path, counts: Mapping[str, int], seed: int) -> bool:
    """Whether `synthesize` with the same arguments was finished before and all its videos are still there."""
    if _settings(root) != {"generator": GENERATOR_VERSION, "seed": seed}:
        return False
    try:
        with (root / "FileList.csv").open(encoding="utf-8", newline="") as file:
            listed = [(row["FileName"], row["Split"]) for row in csv.DictReader(file)]
        there = set(os.listdir(root / "Videos"))
    except (OSError, ValueError, KeyError):
        return False
    wanted = {(clip_name(seed, split, number), split) for split, count in counts.items() for number in range(count)}
    return set(listed) == wanted and all(f"{name}.avi" in there for name, _ in listed)


def synthesize(root: Path, counts: Mapping[str, int], seed: int, workers: int | None = None) -> None:
    """Write `counts` ({"TRAIN": n, ...}) clips to `root`: FileList.csv, VolumeTracings.csv, Videos/*.avi.

    Each clip depends on (seed, split, number) alone: the same bytes whatever the number of workers, and a larger set
    of the same seed keeps the clips of a smaller one. What is there already is not made again; the lists are written
    last.

    Raises:
        QrayError: the folder holds something else or a set of another seed, cannot be written, or a worker was killed.
    """
    import pandas as pd

    try:
        _check_settings(root, seed)
        (root / "Videos").mkdir(parents=True, exist_ok=True)
        facts = _make_all(root, counts, seed, workers)
        tracings = pd.DataFrame([row for f in facts for row in f["tracings"]], columns=TRACING_COLUMNS)
        write_text(root / "VolumeTracings.csv", tracings.to_csv(index=False, lineterminator="\n"))
        clips = pd.DataFrame([f["row"] for f in facts], columns=FILE_LIST_COLUMNS)
        write_text(root / "FileList.csv", clips.to_csv(index=False, lineterminator="\n"))
    except OSError as error:
        raise QrayError(
            f"{root}: the synthetic set cannot be written: {error.strerror or error}; "
            "run it again when that is mended, finished clips are kept"
        ) from error
    except BrokenProcessPool as error:
        raise QrayError(
            f"{root}: a worker process was killed, perhaps for want of memory; "
            "run it again with fewer workers, finished clips are kept"
        ) from error


def _make_all(root: Path, counts: Mapping[str, int], seed: int, workers: int | None) -> list[dict[str, Any]]:
    calls = [
        (split, list(range(first, min(first + CLIPS_PER_CALL, count))))
        for split, count in counts.items()
        for first in range(0, count, CLIPS_PER_CALL)
    ]
    facts: list[dict[str, Any]] = []
    pool = ProcessPoolExecutor(workers or usable_cpus(), get_context("spawn"), initializer=_start_worker)
    try:
        with progress(f"Making synthetic clips in {root}", sum(counts.values()), "clips") as advance:
            for made in pool.map(_make, *zip(*[(root, seed, *call) for call in calls], strict=True)):
                facts += made
                advance(len(made))
    finally:
        pool.shutdown(cancel_futures=True)
    return facts
