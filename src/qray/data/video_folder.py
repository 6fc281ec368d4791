"""The folder of a data set's videos, here or in an object store: from a name as people write it to the one file that it
means, or why to none."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from qray.storage.cache import located
from qray.storage.place import Place, Stat, is_uri, place_of

#: Endings tried, in this order, when a file name comes without one.
VIDEO_ENDINGS = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv", ".ts")


def fold(name: str) -> str:
    """The same for names that differ in case or, as macOS writes them, in how an accent is composed."""
    return unicodedata.normalize("NFC", name).casefold()


def without_ending(name: str) -> str:
    """A name without the ending of a video; one with another ending stays as it is."""
    pure = PurePosixPath(name)
    return str(pure.with_suffix("")) if pure.suffix.lower() in VIDEO_ENDINGS else name


class VideoFolder:
    """Looks names up in a folder. Folders are listed when a name first leads there, so links in a circle do no harm.

    follow_links: whether a link may lead out of the folder, as those of git-annex and of download caches do.
    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self.root, self.follow_links = root, follow_links
        self._inside = root.resolve()
        # Where each folder really is, and there whether each name in it is a folder, and the names that are alike.
        self._real: dict[str, str] = {}
        self._listed: dict[str, tuple[dict[str, bool], dict[str, list[str]]]] = {}

    def path(self, name: str) -> Path:
        """The path of a name that `find` gave."""
        return self.root / name

    def find(self, name: str) -> tuple[str | None, str]:
        """(name of the file in the folder, "") or (None, reason). A file of exactly this name comes first.

        Args:
            name: with forward slashes; with or without the ending, or an absolute path into the folder.
        """
        called = self.root.name
        if (control := next((sign for sign in name if unicodedata.category(sign) == "Cc"), None)) is not None:
            return None, f"the name holds a control character, {control!r}"
        if not name.strip("./") and ".." not in name.split("/"):
            return None, "no file name"
        inside = self.relative(name)
        if inside is None:
            return None, f"the name leaves {called}/"
        candidates = [inside]
        if PurePosixPath(inside).suffix.lower() not in VIDEO_ENDINGS:
            candidates = [*(inside + ending for ending in VIDEO_ENDINGS), inside]
        found = next((c for c in candidates if self._is_file(c)), None)
        if found is None:
            alike = next(filter(None, (list(self._alike(c)) for c in candidates)), [])
            if len(alike) > 1:
                return None, f"could be any of {', '.join(sorted(alike))} in {called}/; write it as the file is called"
            if not alike:
                return None, self._why_not(inside)
            found = alike[0]
        reason = self._astray(found)
        return (None, reason) if reason else (found, "")

    def is_there(self) -> bool:
        """Whether there is such a folder."""
        return self.root.is_dir()

    def where(self, name: str) -> str:
        """What decoding is told of where a file lies."""
        return str(self.path(name).resolve())

    def reading(self, name: str) -> Path | str:
        """What judging is told of it; no two names share one, though they be links to one file."""
        return self.path(name)

    def stamp(self, name: str) -> str:
        """The name of a file with what changes when the file does."""
        path = self.path(name)
        called = path.relative_to(self.root).as_posix()
        try:
            stat = path.stat()
        except OSError:
            return f"{called}|gone"
        return f"{called}|{stat.st_size}|{stat.st_mtime_ns}"

    def _astray(self, name: str) -> str:
        """Why a file that is listed must not be read, if it must not."""
        try:
            target = self.path(name).resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            return "a link to a file that is not there"
        return "" if self._may_lead_to(target) else self._leaves()

    def relative(self, name: str) -> str | None:
        """A name as seen from the folder, None for one outside it; nothing need be there."""
        if not re.match("[A-Za-z]:/|/", name):
            inside = os.path.normpath(name)
            return None if inside == ".." or inside.startswith("../") else inside
        # The folder may have been named by a link, and the file by where that leads, or the other way round.
        absolute = os.path.normpath(name)
        head, tail = os.path.split(absolute)
        real = f"{os.path.realpath(head)}/{tail}" if "\0" not in head else absolute
        for path, root in ((absolute, os.path.abspath(self.root)), (absolute, self._inside), (real, self._inside)):
            if path.startswith(f"{root}/"):
                return os.path.relpath(path, root)
        return None

    def _may_lead_to(self, target: Path) -> bool:
        return self.follow_links or target.is_relative_to(self._inside)

    def _leaves(self) -> str:
        return f"a link that leaves {self.root.name}/; data.follow_links: true allows it"

    def _names(self, folder: str) -> tuple[dict[str, bool], dict[str, list[str]]]:
        """The names in a folder, given as seen from the root, and which are alike; none where it may not be read."""
        real = self._real_of(folder)
        if real not in self._listed:
            names: dict[str, bool] = {}
            try:
                if self._may_lead_to(Path(real)):
                    with os.scandir(real) as entries:
                        names = {entry.name: os.path.isdir(entry.path) for entry in entries}
            except (OSError, RuntimeError, ValueError):
                names = {}
            self._list(real, names)
        return self._listed[real]

    def _real_of(self, folder: str) -> str:
        if folder not in self._real:
            self._real[folder] = os.path.realpath(self.path(folder))
        return self._real[folder]

    def _list(self, folder: str, names: dict[str, bool]) -> None:
        alike: dict[str, list[str]] = {}
        for name in sorted(names):
            alike.setdefault(fold(name), []).append(name)
        self._listed[folder] = names, alike

    def _is_file(self, name: str) -> bool:
        at, parts = "", name.split("/")
        for part in parts[:-1]:
            if not self._names(at)[0].get(part):
                return False
            at = f"{at}{part}/"
        return self._names(at)[0].get(parts[-1]) is False

    def _alike(self, name: str) -> Iterator[str]:
        """Files whose names differ from this one in case or accents only."""
        places, parts = [""], name.split("/")
        for part in parts[:-1]:
            deeper = (f"{at}{n}/" for at in places for n in self._alike_in(at, part, folders=True))
            # Once each: with two links to where one stands, ways there would double with each step.
            places = list({self._real_of(place): place for place in deeper}.values())
        for at in places:
            yield from (f"{at}{n}" for n in self._alike_in(at, parts[-1], folders=False))

    def _alike_in(self, folder: str, name: str, folders: bool) -> list[str]:
        names, alike = self._names(folder)
        return [n for n in alike.get(fold(name), []) if names[n] == folders]

    def _why_not(self, name: str) -> str:
        called, at = self.root.name, ""
        for part in name.split("/"):
            if not self._names(at)[0].get(part):
                return f"file not found in {called}/"
            at = f"{at}{part}/"
            if not self._may_lead_to(self.path(at).resolve()):
                return self._leaves()
        return f"a folder, not a file, in {called}/"


class StoredVideos(VideoFolder):
    """The same in an object store, which has no links, and is listed once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.files: dict[str, Stat] = place.files()
        super().__init__(Path(place.name))
        folders: dict[str, dict[str, bool]] = {"": {}}
        for file in self.files:
            at, parts = "", file.split("/")
            for depth, part in enumerate(parts, start=1):
                is_folder = depth < len(parts)
                folders.setdefault(at, {})[part] = is_folder
                at += f"{part}/"
        for at, names in folders.items():
            self._list(at, names)

    def is_there(self) -> bool:
        return bool(self.files)

    def reading(self, name: str) -> str:
        return self.where(name)

    def where(self, name: str) -> str:
        return located(self.place / name, self.files[name])

    def stamp(self, name: str) -> str:
        stat = self.files[name]
        return f"{name}|{stat.size}|{stat.mtime_ns}"

    def relative(self, name: str) -> str | None:
        if is_uri(name):
            place = place_of(name)
            inside = f"{self.place.path}/".lstrip("/")
            if isinstance(place, Path) or not place.path.startswith(inside):
                return None
            return place.path.removeprefix(inside) if place.authority == self.place.authority else None
        return None if name.startswith("/") else super().relative(name)

    def _names(self, folder: str) -> tuple[dict[str, bool], dict[str, list[str]]]:
        return self._listed.get(folder, ({}, {}))

    def _real_of(self, folder: str) -> str:
        return folder

    def _astray(self, name: str) -> str:
        return ""

    def _may_lead_to(self, target: Path) -> bool:
        return True


def videos_in(folder: Path | Place, follow_links: bool = False) -> VideoFolder:
    """The videos of a folder, here or in an object store."""
    return VideoFolder(folder, follow_links) if isinstance(folder, Path) else StoredVideos(folder)
