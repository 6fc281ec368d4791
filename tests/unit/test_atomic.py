"""A file or folder is there completely or not at all, whatever interrupts its writer."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.disks import small_disk

from qray.atomic import atomic_path, remove_unfinished, write_json, write_parquet, write_text


class Broken(Exception):
    """What interrupts a writer here."""


def half_write(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "part").touch()
        raise Broken


def test_a_write_that_dies_midway_leaves_the_old_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "folder" / "old", "")
    with pytest.raises(Broken):
        half_write(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["old"]


def test_a_write_that_dies_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(Broken):
        half_write(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        table = pa.table({"noise": np.random.default_rng(0).random(2**14)})
        for write in (
            lambda path: write_text(path, "x" * 2**17),
            lambda path: write_parquet(path, table),
        ):
            path = disk / "kept"
            path.write_text("old")
            with pytest.raises(OSError, match=r"No space left on device.*disk/kept") as raised:
                write(path)
            assert raised.value.errno == errno.ENOSPC
            assert [(each.name, each.read_text()) for each in disk.iterdir()] == [("kept", "old")]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, sys; from pathlib import Path; from qray.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('ne'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert (done.returncode, path.read_text()) == (-9, "old")


def test_a_folder_replaces_the_one_before_with_all_its_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "second"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


def test_the_temporary_name_keeps_the_ending(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "clip.avi") as temporary:
        temporary.touch()
        assert temporary.suffix == ".avi"


def test_json_refuses_a_figure_that_is_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"mae": float("nan")})


def test_json_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "심장", "none": None})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "심장", "none": None}


def test_parquet_reads_back(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    write_parquet(tmp_path / "a.parquet", table)
    assert pq.read_table(tmp_path / "a.parquet") == table


def test_what_a_killed_writer_left_can_be_removed_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom qray.atomic import atomic_path, write_text\n"
        "out = Path(sys.argv[1])\nwrite_text(out / 'units' / 'whole', '1')\n"
        "with atomic_path(out / 'artifacts' / 'k') as folder, atomic_path(out / 'table') as file:\n"
        "    folder.mkdir()\n    (folder / 'model').touch()\n    file.touch()\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.rglob(".tmp-*"))) == 2
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["artifacts", "units", "whole"]
