"""Reasons: of another's error text, the lines that say why."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray.exceptions import RayTaskError

from qray.errors import QrayError
from qray.graph.runner import plain_reason
from qray.reasons import LINES, WIDTH, reason_of

COMPILER = """C++ compile error

Command:
g++ /tmp/a/header.hpp -D X -Wno-error -O1 -o /tmp/a/header.i

Output:
/tmp/a/header.hpp: In function 'void f()':
/tmp/a/header.hpp:3:10: fatal error: omp.h: No such file or directory
    3 | #include <omp.h>
      |          ^~~~~~~
compilation terminated.

Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace (please do this especially if you're reporting a bug)
"""


def test_a_compilers_line_is_kept_and_its_command_is_not() -> None:
    found = reason_of(COMPILER)
    assert found == ("C++ compile error; /tmp/a/header.hpp:3:10: fatal error: omp.h: No such file or directory")


def test_a_traceback_is_left_out_and_its_words_are_kept() -> None:
    code = "def f():\n    raise ValueError('first\\n  second')\nf()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert reason_of(done.stderr).startswith("ValueError: first")


def test_where_no_line_says_error_the_next_ones_are_kept() -> None:
    assert reason_of("1 problem in Study\nname\n  must be longer") == "1 problem in Study; name; must be longer"


@pytest.mark.parametrize("text", ["x" * 10_000, "\n".join(["a"] + [f"error: {i}" for i in range(1000)])])
def test_a_reason_has_a_bounded_length(text: str) -> None:
    assert len(reason_of(text)) <= LINES * (WIDTH + 2)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_text_is_no_reason(text: str) -> None:
    assert reason_of(text) == ""


def test_a_repeated_line_is_said_once() -> None:
    assert reason_of("it broke\nld: cannot find -lomp\nld: cannot find -lomp") == "it broke; ld: cannot find -lomp"


def test_a_failed_unit_names_the_error_and_why() -> None:
    error = RayTaskError("build", "traceback", RuntimeError(COMPILER))
    found = plain_reason(error)
    assert found.startswith("RuntimeError: C++ compile error; ")
    assert "omp.h: No such file" in found


def test_qrays_own_sentences_bear_no_class_name() -> None:
    assert plain_reason(RayTaskError("build", "traceback", QrayError("no clips"))) == "no clips"


def test_an_error_without_words_is_its_name() -> None:
    assert plain_reason(KeyError()) == "KeyError"
