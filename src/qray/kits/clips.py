"""The clips of a kit: of VAL, over the whole range of the target, as the parity of INT8 artifacts is tried on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qray.data.decode import ClipError, decode_frames, evaluation_indices
from qray.data.manifest import check_manifest, read_manifest
from qray.errors import QrayError
from qray.storage.cache import local_copy
from qray.study import Study
from qray.units.clips import parity_clips
from qray.units.data_set import data_folder

if TYPE_CHECKING:
    import pandas as pd

    from qray.storage.place import Place


def kit_clips(study: Study, data: Path | Place | None, count: int | None = None) -> pd.DataFrame:
    """So many VAL clips, as the manifest has them. data: by default where the study has its data set.

    Raises:
        QrayError: the data set is not there, or its lists are unusable.
    """
    manifest = read_manifest(data or data_folder(study.data), study.data)
    check_manifest(manifest, study.data)
    parity = study.parity if count is None else study.parity.model_copy(update={"clips": count})
    return parity_clips(study.model_copy(update={"parity": parity}), manifest)


def decode_clips(clips: pd.DataFrame, study: Study) -> np.ndarray:
    """Their frames, uint8 (N, T, H, W, 3): one window of each.

    Raises:
        QrayError: one cannot be decoded.
    """
    spec = study.clip.single_window()
    frames = np.empty((len(clips), spec.frames, spec.image_size, spec.image_size, 3), np.uint8)
    for at, (name, path, n_frames) in enumerate(zip(clips["clip"], clips["path"], clips["n_frames"], strict=True)):
        try:
            with local_copy(path) as file:
                frames[at] = decode_frames(file, evaluation_indices(int(n_frames), spec), spec.image_size)[0]
        except ClipError as error:
            raise QrayError(f"clip {name} cannot be decoded for the kit: {error}") from None
    return frames
