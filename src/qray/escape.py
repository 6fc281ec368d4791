"""Words that users chose (columns, clips, folders, hosts), made safe for where they are written.

HTML is the templates' own work (autoescape), YAML and JSON that of their libraries; what is left is here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

#: Control characters but newline and tab, half surrogates, and what turns the direction of text round: a terminal acts
#: on the first, no file takes the second, and the third shows a name as it is not (Unicode Technical Report 36, 2.5).
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: What Markdown acts on anywhere in a line, GitHub's formulas and strikethrough included, and only where one begins.
#: An underscore within a word is none of it (CommonMark 6.2).
_MARKS = re.compile(r"[\\`*|<>\[\]&~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FIRST = re.compile(r"^(?:[#+=-]|\d+(?=[.)]))")
_CODE = re.compile(r"(`[^`|<>\\]+`)")
#: A path below a folder, as sentences hold it; with nothing but a slash the folder itself is meant, and shown as it is.
_BELOW = r"((?:/[^\s'\"`,;:()]*[^\s'\"`,;:().])?)(?!/)"
#: What people call a folder of this machine that they need not know of, by its path.
_CALLED: dict[str, Callable[[str], str]] = {}


def call_folder(folder: Path, name: Callable[[str], str]) -> None:
    """Say `name` of a path below it (forward slashes, "" for itself) wherever a folder's path would be said."""
    _CALLED[str(folder)] = name


def as_called(text: str) -> str:
    """Text with what folders are called in the place of their paths."""
    for path, name in _CALLED.items():
        if path in text:
            text = re.sub(re.escape(path) + _BELOW, lambda found: name(found[1].strip("/")), text)  # noqa: B023
    return text


def visible(text: str) -> str:
    """Text without anything that a reader cannot see: an escape sequence is shown as \\x1b and so on."""
    text = as_called(text)
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def markdown(text: str, within: bool = False) -> str:
    """One line of text as Markdown that reads as the text does; what stands between backticks stays code.

    Code cannot be escaped, so that backticks around a sign that Markdown or HTML may act on are shown as backticks.
    within: a line, where no list or heading can begin (a cell of a table).
    """
    parts = _CODE.split(" ".join(visible(text).split("\n")))
    told = "".join(part if number % 2 else _MARKS.sub(r"\\\g<0>", part) for number, part in enumerate(parts))
    if within:
        return told
    return _FIRST.sub(lambda found: f"\\{found[0]}" if not found[0].isdigit() else f"{found[0]}\\", told)


def command(*words: str | Path) -> str:
    """A command that can be pasted into a shell, whatever its words hold; a path that looks like an option is not one.

    Words with control characters are written as bash, zsh and ksh read them: $'line\\x0abreak'.
    """
    return " ".join(_word(f"./{word}" if isinstance(word, Path) and str(word)[:1] == "-" else as_called(str(word)))
                    for word in words)  # fmt: skip


def _word(word: str) -> str:
    if not (_UNSEEN.search(word) or "\n" in word or "\t" in word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\x0a").replace("\t", "\\x09")
    return f"$'{_UNSEEN.sub(_bytes, plain)}'"


def _bytes(found: re.Match[str]) -> str:
    # As the file system has them: bytes that are no UTF-8 are half surrogates in Python.
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(found[0]))
