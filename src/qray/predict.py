"""Use what was built: videos in, predictions out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qray.data.decode import ClipError, decode_frames, evaluation_indices
from qray.data.probe import probe
from qray.engines.artifact import read_artifact
from qray.engines.registry import load_artifact
from qray.errors import QrayError
from qray.reasons import reason_of
from qray.storage.cache import local_copy
from qray.storage.place import StorageError


def predict_videos(
    folder: Path, videos: Sequence[Path | str], threads: int = 1, allow_code: bool = False, device: str | None = None
) -> Iterator[tuple[Path | str, float | None, str | None]]:
    """Yield (video, prediction in target units, None), or (video, None, reason) for one that cannot be read. Videos are
    paths or URIs. device: by default the one that it was built for.

    Clips are sampled as the artifact's study evaluated them; windows are averaged.

    Raises:
        QrayError: `folder` holds no artifact, or one that its engine cannot load or run here; or one of native code,
            which was not allowed (`registry.load_artifact`).
    """
    artifact = read_artifact(folder)
    try:
        predict = load_artifact(artifact, threads, device, allow_code)
    except QrayError:
        raise
    except Exception as error:
        # Each engine has errors of its own for a file that it cannot read, and may not be installed at all.
        raise QrayError(
            f"{folder}: engine {artifact.variant.engine} cannot load it ({_said(error)}); "
            "`qray doctor` says which engines work here"
        ) from error
    for video in videos:
        try:
            with local_copy(video) as path:
                facts = probe(path)
                if facts.error:
                    raise ClipError(facts.error)
                wanted = evaluation_indices(facts.n_frames, artifact.clip)
                clips = decode_frames(path, wanted, artifact.clip.image_size)
        except (ClipError, StorageError) as error:
            yield video, None, str(error)
            continue
        try:
            value = float(np.mean(np.asarray(predict(clips), np.float64)))
        except Exception as error:
            raise QrayError(f"{folder}: engine {artifact.variant.engine} cannot run it ({_said(error)})") from error
        if math.isfinite(value):
            yield video, value, None
        else:
            yield video, None, "the model's prediction is not a finite number"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(str(error))}"
