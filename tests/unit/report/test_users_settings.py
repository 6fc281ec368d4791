"""No setting of the user's own plotting library stops or changes a plot."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qray.report.theme import draw
from qray.words.document import Picture

NO_TEXT = b"font.size: 30\n\xff\xfe\x00\n"
LATEX = b"text.usetex: True\nsavefig.dpi: 30\nfont.size: 30\nbackend: TkAgg\n"
SCRIPT = "import test_users_settings as tests; print(tests.digest(tests.plot()))"


def plot() -> Picture:
    return draw("a", "a plot", lambda figure: figure.add_subplot(title="EF_1 한 $x$").plot([1, 3, 2]) and None, 2.0)


def digest(picture: Picture) -> str:
    return hashlib.sha256(picture.png + picture.svg.encode()).hexdigest()


@pytest.mark.parametrize(
    ("backend", "named", "here"),
    [
        ("module://matplotlib_inline.backend_inline", LATEX, NO_TEXT),
        ("garbage", NO_TEXT, LATEX),
        ("QtAgg", LATEX, LATEX),
    ],
    ids=["of a notebook, working folder", "of nothing, MATPLOTLIBRC", "of another toolkit, LaTeX"],
)
def test_no_setting_stops_or_changes_a_plot(tmp_path: Path, backend: str, named: bytes, here: bytes) -> None:
    (tmp_path / "named").write_bytes(named)
    (tmp_path / "matplotlibrc").write_bytes(here)
    # A file is a folder that nobody can write into, not even root.
    settings = {"MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "named"), "MPLCONFIGDIR": str(tmp_path / "named"),
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | settings, cwd=tmp_path, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digest(plot())]


def test_settings_made_in_the_same_process_change_nothing() -> None:
    before = digest(plot())
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 30, "font.size": 30, "axes.grid": False}):
        assert digest(plot()) == before


def test_a_letter_that_the_font_lacks_is_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    plot()
    assert [str(warning.message) for warning in recwarn] == []
