"""Other people's error texts as a reason that fits into a row: the lines that say why, and no traceback."""

from __future__ import annotations

import re

#: Lines beside the first that a reason keeps, and characters of each line.
LINES, WIDTH = 3, 300
#: What a compiler, a linker, the system or Python says where it says why.
WHY = re.compile(
    r"\b(fatal|error|exception)\b.*:|undefined reference|no such file|not found|no space left|permission denied"
    r"|out of memory|killed|cannot\b|expected\b",
    re.IGNORECASE,
)
FRAME = re.compile(r'^\s*File ".+", line \d+')
#: Advice that libraries end their errors with; it never says why.
ADVICE = re.compile(r"^(set torch|for further information|you can suppress|command:|output:)", re.IGNORECASE)


def reason_of(text: str) -> str:
    """The first line of an error and those of the others that say why, joined by "; "; empty for an empty text.

    A compiler's "C++ compile error" is followed by its command and its output, Python's words by a traceback before
    them: neither the first line nor the last is always the one to keep.
    """
    lines = [line.rstrip() for line in text.strip().splitlines()]
    frames = [number for number, line in enumerate(lines) if FRAME.match(line)]
    if frames:
        # What a traceback ends with begins at the margin; source and markers of its last frame are indented.
        lines = [line for line in lines[frames[-1] + 1 :] if line and not line.startswith(("  ", "\t"))] or lines[-1:]
    lines = [line.strip() for line in lines if line.strip() and not ADVICE.match(line.strip())]
    rest = list(dict.fromkeys(line for line in lines[1:] if WHY.search(line) and line not in lines[0]))
    kept = lines[:1] + (rest or lines[1:])[: LINES - 1]
    return "; ".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in kept)
