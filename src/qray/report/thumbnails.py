"""The clips on which the variant to ship errs most, and how they look. The only part of a report that opens videos."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from qray.data.video_folder import videos_in
from qray.errors import ClipError, QrayError
from qray.judge.evidence import Evidence, VariantEvidence
from qray.storage.cache import local_copy
from qray.storage.place import Place, StorageError
from qray.study import Study
from qray.words.document import Block, ClipCard, Clips, Paragraph
from qray.words.figures import listed, number, signed

WORST, FRAMES, SIZE_PX, QUALITY = 4, 3, 112, 80
#: Looking at a clip takes no more than this many of its frames.
MOST_FRAMES = 600


def worst(evidence: Evidence, leaders: Sequence[VariantEvidence], data: Path | Place | None) -> list[Block]:
    """The worst clips of the first leader after FP32 that has predictions, or else of FP32."""
    predicted = [v for v in leaders if v.clips is not None and not v.clips.empty]
    if not predicted:
        return [Paragraph("There are no predictions to choose clips by.")]
    shown = next((v for v in predicted if v is not evidence.reference), predicted[0])
    return worst_clips(shown, evidence.study, data)


def worst_clips(variant: VariantEvidence, study: Study, data: Path | Place | None) -> list[Block]:
    """Cards of the largest errors, and of the largest moves from FP32; data: the folder of the data set, if known."""
    clips = variant.clips
    assert clips is not None
    table = clips.assign(
        error=(clips["prediction"] - clips["target"]).abs(), move=(clips["prediction"] - clips["reference"]).abs()
    )
    blocks: list[Block] = []
    missing: list[str] = []
    paths, unreachable = _clip_paths(study, data)
    for column, words in (("error", "Largest errors of {}:"), ("move", "Largest moves of {} from FP32:")):
        # The name settles ties, so that the same run shows the same clips.
        worst = table.sort_values([column, "clip"], ascending=[False, True]).head(WORST)
        if column == "move" and not (worst["move"] > 0).any():
            continue
        cards = []
        for _, row in worst.iterrows():
            frames, reason = ((), unreachable) if unreachable else _frames(str(row["clip"]), study, data, paths)
            if reason:
                missing.append(reason)
            cards.append(ClipCard(str(row["clip"]), frames, _lines(variant.name, row)))
        blocks += [Paragraph(words.format(variant.name)), Clips(tuple(cards))]
    if missing:
        blocks.append(Paragraph(f"No pictures: {listed(list(dict.fromkeys(missing)))}.", "dim"))
    return blocks


def _lines(name: str, row: pd.Series) -> tuple[str, ...]:
    target, own, reference = float(row["target"]), float(row["prediction"]), float(row["reference"])
    known = bool(np.isfinite(reference))
    return (
        f"Label {number(target, 1)}",
        *([f"FP32 {number(reference, 1)} ({signed(reference - target, 1)})"] if known else []),
        f"{name} {number(own, 1)} ({signed(own - target, 1)})",
        *([f"moved by {signed(own - reference, 1)}"] if known else []),
    )


def _frames(
    clip: str, study: Study, data: Path | Place | None, paths: Mapping[str, str]
) -> tuple[tuple[bytes, ...], str]:
    """JPEG of some frames, evenly spread; or none and the reason."""
    if data is None:
        return (), "the data set is not known; name its folder with --data"
    folder = data / study.data.videos
    if isinstance(folder, Path) and not folder.is_dir():
        return (), f"{folder} is not there; name the data set's folder with --data"
    try:
        where = paths.get(clip) or find_video(folder, clip, study.data.follow_links)
        if where is None:
            return (), f"{clip} is not in {folder}"
        with local_copy(where) as path:
            return tuple(_jpeg(picture) for picture in _pictures(path)), ""
    except (ClipError, StorageError) as error:
        return (), f"{clip}: {error}"


def _pictures(path: Path) -> np.ndarray:
    """uint8 (FRAMES, S, S, 3). Raises ClipError."""
    from qray.data.decode import all_frames, decode_frames, open_video

    with open_video(path) as (container, stream):
        count = sum(1 for _ in islice(all_frames(container, stream), MOST_FRAMES))
    if count == 0:
        raise ClipError("it holds no frame")
    wanted = np.linspace(0, count - 1, FRAMES + 2).round().astype(np.int64)[1:-1][None]
    return decode_frames(path, wanted, SIZE_PX)[0]


def find_video(folder: Path | Place, clip: str, follow_links: bool = False) -> str | None:
    """The file of a clip, whose name comes with or without its ending; None if there is none inside the folder."""
    videos = videos_in(folder, follow_links)
    found, _ = videos.find(clip)
    return videos.where(found) if found else None


def _clip_paths(study: Study, data: Path | Place | None) -> tuple[dict[str, str], str]:
    """The file of each clip by the list, which alone tells which of two endings is meant; {} where it is gone. And why
    no clip can be had, where its store does not answer."""
    from qray.data.manifest import clip_paths

    try:
        return (clip_paths(data, study.data) if data is not None else {}), ""
    except StorageError as error:
        return {}, str(error)
    except QrayError:
        return {}, ""


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
