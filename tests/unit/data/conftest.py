"""A small data set whose files and rows each test chooses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.videos import numbered_frames, write_file_list, write_video

from qray.data.manifest import Manifest, read_manifest
from qray.study import Data

HEADER = ("FileName", "EF", "Split")


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos that differ in content."""
    folder = tmp_path_factory.mktemp("samples")
    return [write_video(folder / f"{count}.avi", numbered_frames(count, 16, 16)) for count in range(2, 8)]


class DataSet:
    """A data set in the making."""

    def __init__(self, root: Path, samples: list[Path]) -> None:
        self.root, self.samples = root, samples
        (root / "Videos").mkdir(parents=True)

    def video(self, *names: str) -> None:
        """Files of these names in Videos/, each with another content than the one before."""
        for name in names:
            target = self.root / "Videos" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.samples[len(list((self.root / "Videos").rglob("*"))) % len(self.samples)], target)

    def read(self, *rows: Sequence[object], header: Sequence[str] = HEADER, data: Data | None = None) -> Manifest:
        write_file_list(self.root, rows, header)
        return read_manifest(self.root, data or Data(), workers=1)


@pytest.fixture
def data_set(tmp_path: Path, samples: list[Path]) -> DataSet:
    return DataSet(tmp_path / "set", samples)
