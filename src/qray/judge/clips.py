"""Predictions clip by clip, as record arrays: pandas alone would take `qray show` half a second to import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

#: One clip: its name, its label, what a variant predicted (NaN where it could not), and what FP32 did (NaN until
#: `pair`, and where there is no FP32).
CLIP = np.dtype([("clip", object), ("target", float), ("prediction", float), ("reference", float)])


def read_columns(out: Path, relative: str, columns: Iterable[str]) -> pa.Table:
    """A Parquet file of OUT that must have these columns.

    Raises:
        ValueError: it cannot be used; the message says why, with the path inside OUT.
    """
    path = out / relative
    if not path.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{relative} leads out of {out}")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{relative} is not a file")
    try:
        # Not pq.read_table, which imports all that reads folders of files.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise ValueError(f"{relative} is missing") from None
    except (pa.ArrowException, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{relative} cannot be read ({first})") from None
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise ValueError(f"{relative} has no column {', '.join(lacking)}")
    return table


def read_predictions(out: Path, relative: str) -> np.ndarray:
    """Predictions of a split: CLIP (n,), no clip twice, every target finite.

    Raises:
        ValueError: there are none that can be used; the message says why.
    """
    table = read_columns(out, relative, ("clip", "target", "prediction"))
    figures = [table[name] for name in ("target", "prediction")]
    if not all(pa.types.is_floating(one.type) or pa.types.is_integer(one.type) for one in figures):
        raise ValueError(f"{relative} holds targets or predictions that are no numbers")
    # Not to_numpy, which imports pandas; a null is NaN.
    found = clips_of(table["clip"].to_pylist(), *(np.array(one.to_pylist(), float) for one in figures))
    if len(set(found["clip"])) < len(found):
        raise ValueError(f"{relative} names clips twice")
    if not np.isfinite(found["target"]).all():
        raise ValueError(f"{relative} holds targets that are not finite")
    return found


def clips_of(names: Sequence[str], target: npt.ArrayLike, prediction: npt.ArrayLike) -> np.ndarray:
    """CLIP (n,) of names and figures, without a reference."""
    found = np.empty(len(names), CLIP)
    found["clip"], found["target"], found["prediction"] = names, target, prediction
    found["reference"] = np.nan
    return found


def pair(own: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The clips of a variant that FP32 could read, in the variant's order, with what FP32 predicted; its own
    prediction may still be NaN."""
    own, known = _common(own, reference[~np.isnan(reference["prediction"])])
    own["reference"] = known["prediction"]
    return own


def shared(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both that are of one clip with one target, in the order of the first."""
    first, second = _common(first, second)
    same = np.isclose(first["target"], second["target"], rtol=0, atol=1e-6)
    return first[same], second[same]


def _common(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = set(second["clip"])
    first = first[[name in there for name in first["clip"]]] if len(first) else first.copy()
    return first, rows_of(second, first["clip"])


def rows_of(clips: np.ndarray, names: Iterable[str]) -> np.ndarray:
    """The rows of these clips, in their order.

    Raises:
        KeyError: one is not there.
    """
    at = {name: row for row, name in enumerate(clips["clip"])}
    return clips[[at[name] for name in names]]


def usable(clips: np.ndarray | None) -> np.ndarray | None:
    """The clips with a finite prediction; None where there are none."""
    found = None if clips is None else clips[np.isfinite(clips["prediction"])]
    return found if found is not None and len(found) else None


def errors(clips: np.ndarray, of: str = "prediction") -> np.ndarray:
    """Absolute errors, float64 (n,), of the variant's predictions or of FP32's ("reference")."""
    found: np.ndarray = np.abs(clips[of] - clips["target"])
    return found
