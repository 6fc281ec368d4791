"""The folder of a data set's videos, here or in an object store: from a name as people write it to the one file that it
means, or why to none."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qray.storage.cache import located
from qray.storage.place import Place, Stat, is_uri, place_of

#: Endings tried, in this order, when a file name comes without one.
VIDEO_ENDINGS = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv", ".ts")


def fold(name: str) -> str:
    """The same for names that differ in case or, as macOS writes them, in how an accent is composed."""
    return unicodedata.normalize("NFC", name).casefold()


def without_ending(name: str) -> str:
    """A name without the ending of a video; one with another ending stays as it is."""
    rest, ending = os.path.splitext(name)
    return rest if ending.lower() in VIDEO_ENDINGS else name


@dataclass
class _Listed:
    """A folder that was listed: where it really is, whether each name in it is a folder, and which are links."""

    real: str = ""
    names: dict[str, bool] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)

    @cached_property
    def alike(self) -> dict[str, list[str]]:
        """The names by what is the same for those that are alike."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.names):
            found.setdefault(fold(name), []).append(name)
        return found


class VideoFolder:
    """Looks names up in a folder. Folders are listed when a name first leads there, so links in a circle do no harm.

    follow_links: whether a link may lead out of the folder, as those of git-annex and of download caches do.
    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self.root, self.follow_links = root, follow_links
        self._inside = str(root.resolve())
        # Where each folder really is, and what is there.
        self._real: dict[str, str] = {}
        self._listed: dict[str, _Listed] = {}

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
        if os.path.splitext(inside)[1].lower() not in VIDEO_ENDINGS:
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
        """What judging and decoding are told of where a file lies: its path without any link in it."""
        return self._followed(name)[0]

    def _followed(self, name: str) -> tuple[str, bool]:
        """(where a file lies, whether its name is a link)."""
        at, _, last = name.rpartition("/")
        folder = self._names(f"{at}/" if at else "")
        real = os.path.join(folder.real, last)
        # What the listing showed to be no link need not be looked at: a look at each of a million takes a minute.
        return (os.path.realpath(real), True) if last in folder.links else (real, False)

    def stamp(self, name: str) -> str:
        """The name of a file with what changes when the file does."""
        try:
            stat = os.stat(self.path(name))
        except OSError:
            return f"{name}|gone"
        return f"{name}|{stat.st_size}|{stat.st_mtime_ns}"

    def _astray(self, name: str) -> str:
        """Why a file that is listed must not be read, if it must not."""
        target, is_link = self._followed(name)
        if is_link and not os.path.exists(target):
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

    def _may_lead_to(self, target: str) -> bool:
        return self.follow_links or target == self._inside or target.startswith(os.path.join(self._inside, ""))

    def _leaves(self) -> str:
        return f"a link that leaves {self.root.name}/; data.follow_links: true allows it"

    def _names(self, folder: str) -> _Listed:
        """What is in a folder, given as seen from the root; nothing where it may not be read."""
        real = self._real_of(folder)
        if real not in self._listed:
            listed = self._listed[real] = _Listed(real)
            with suppress(OSError, RuntimeError, ValueError):
                if self._may_lead_to(real):
                    with os.scandir(real) as entries:
                        for entry in entries:
                            # Of a link in a circle an entry's own is_dir raises.
                            link = entry.is_symlink()
                            listed.names[entry.name] = os.path.isdir(entry.path) if link else entry.is_dir()
                            if link:
                                listed.links.add(entry.name)
        return self._listed[real]

    def _real_of(self, folder: str) -> str:
        if folder not in self._real:
            self._real[folder] = os.path.realpath(self.path(folder))
        return self._real[folder]

    def _is_file(self, name: str) -> bool:
        at, parts = "", name.split("/")
        for part in parts[:-1]:
            if not self._names(at).names.get(part):
                return False
            at = f"{at}{part}/"
        return self._names(at).names.get(parts[-1]) is False

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
        listed = self._names(folder)
        return [n for n in listed.alike.get(fold(name), []) if listed.names[n] == folders]

    def _why_not(self, name: str) -> str:
        called, at = self.root.name, ""
        for part in name.split("/"):
            if not self._names(at).names.get(part):
                return f"file not found in {called}/"
            at = f"{at}{part}/"
            if not self._may_lead_to(str(self.path(at).resolve())):
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
        self._listed = {at: _Listed(at, names) for at, names in folders.items()}

    def is_there(self) -> bool:
        return bool(self.files)

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

    def _names(self, folder: str) -> _Listed:
        return self._listed.get(folder, _Listed())

    def _real_of(self, folder: str) -> str:
        return folder

    def _astray(self, name: str) -> str:
        return ""

    def _may_lead_to(self, target: str) -> bool:
        return True


def videos_in(folder: Path | Place, follow_links: bool = False) -> VideoFolder:
    """The videos of a folder, here or in an object store."""
    return VideoFolder(folder, follow_links) if isinstance(folder, Path) else StoredVideos(folder)
