"""Weights from files that others wrote: read without running anything of theirs, found in whatever they are wrapped in,
and matched with an architecture's by name and shape."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qray.engines.programs import MAX_BYTES
from qray.errors import QrayError, UsageError

#: What a checkpoint may hold besides tensors and containers: numbers of NumPy, under the names that its versions gave
#: them, and what `argparse` leaves. None of it runs code when it is made. Never the dtype of objects, which would.
NUMBERS = ("float64", "float32", "float16", "int64", "int32", "int16", "uint8", "bool")
HARMLESS: list[Any] = [
    np.dtype, *(type(np.dtype(name)) for name in NUMBERS), argparse.Namespace, PosixPath, PurePosixPath,
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]  # fmt: skip
#: Which is missing from old checkpoints, and changes nothing in evaluation; and what averages of weights count.
COUNTERS = ("num_batches_tracked", "n_averaged")
NAMED = 8


def read_checkpoint(path: Path) -> Any:
    """What a `.safetensors` file, or one of `torch.save`, holds; tensors on the CPU.

    Raises:
        QrayError: it is neither, holds code or objects of unknown types, or is too large.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(info.file_size for info in archive.infolist()))
    if size > MAX_BYTES:
        raise QrayError(f"{path}: {size / 2**30:.0f} GiB unpacked; qray reads at most {MAX_BYTES / 2**30:.0f} GiB")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise QrayError(f"{path}: not a safetensors file ({error})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise QrayError(f"{path}: {_why(str(error))}") from None


def _why(message: str) -> str:
    if "TorchScript" in message or "torch.jit" in message:
        return "a TorchScript file, which holds code; save model.state_dict() with torch.save, or export the model"
    if found := re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class|operand)\D*?)\s*([\w.]+\.[\w.]+)", message):
        return (
            f"pickles an object of {found.group(1)}, and unpickling that could run code; save model.state_dict() with "
            "torch.save, or write a .safetensors file"
        )
    return f"not a checkpoint of torch.save ({message.strip().splitlines()[0][:120] if message.strip() else 'empty'})"


def states(content: Any, at: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in a checkpoint, with the dotted keys that lead to it."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield at, tensors
    for key, value in content.items() if depth else ():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from states(value, f"{at}.{key}" if at else key, depth - 1)


@dataclass
class Match:
    """How the tensors of a checkpoint fit an architecture: by its names, which the checkpoint puts `prefix` before."""

    key: str
    prefix: str
    given: Mapping[str, Tensor]
    #: The checkpoint's name of each weight that fits.
    found: dict[str, str] = field(default_factory=dict)
    #: Weights of the architecture that the checkpoint lacks, tensors that the architecture lacks, and (name, shape
    #: wanted, shape found) of those that differ.
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    #: What was renamed, in words.
    renamed: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What import prints of it."""
        total = len(self.found) + len(self.missing) + len(self.misshapen)
        where = f" in {self.key!r}" if self.key else ""
        stripped = f", prefix {self.prefix!r} left out" if self.prefix else ""
        found = [f"weights{where}: {len(self.found)} of {total} matched{stripped}", *self.renamed]
        for word, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                found.append(f"{word}: {_listed(names)}")
        shapes = [f"{name} is {list(has)}, not {list(wants)}" for name, wants, has in self.misshapen]
        return [*found, *([f"of another shape: {_listed(shapes)}"] if shapes else [])]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def match(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], head: str, key: str = "") -> Match:
    """Fit tensors to an architecture's. wanted: its state_dict; head: the path of its head, whose checkpoint may have
    another name for it."""
    prefixes = {name[: -len(want)] for want in list(wanted)[:3] for name in given if name.endswith(want)}
    prefix = max(sorted(prefixes), key=lambda p: sum(p + want in given for want in wanted), default="")
    result = Match(key, prefix, given)
    for want, tensor in wanted.items():
        name = prefix + want
        if name not in given:
            result.missing.append(want)
        elif given[name].shape != tensor.shape:
            result.misshapen.append((want, tuple(tensor.shape), tuple(given[name].shape)))
        else:
            result.found[want] = name
    result.unexpected = [name for name in given if name not in result.found.values() and name != "n_averaged"]
    odd = {prefix + want for want, *_ in result.misshapen}
    result.unexpected = [name for name in result.unexpected if name not in odd]
    _rename_head(result, wanted, given, head)
    result.missing = [want for want in result.missing if not want.endswith(COUNTERS)]
    return result


def _rename_head(result: Match, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], head: str) -> None:
    """A linear head by another name: the one layer that is left over on both sides."""
    lacking = [want for want in result.missing if want.startswith(f"{head}.")]
    owners = {want.rpartition(".")[0] for want in lacking}
    if len(owners) != 1 or [want for want in wanted if want.startswith(f"{head}.")] != lacking:
        return
    others = sorted({name.rpartition(".")[0] for name in result.unexpected})
    fitting = [
        other for other in others
        if all(_shape(given, f"{other}.{want.rpartition('.')[2]}") == wanted[want].shape for want in lacking)
    ]  # fmt: skip
    if len(fitting) == 1:
        for want in lacking:
            name = f"{fitting[0]}.{want.rpartition('.')[2]}"
            result.found[want] = name
            result.missing.remove(want)
            result.unexpected.remove(name)
        result.renamed.append(f"the head is called {fitting[0]!r} there")


def _shape(given: Mapping[str, Tensor], name: str) -> Any:
    return given[name].shape if name in given else None


def best_match(content: Any, wanted: Mapping[str, Tensor], head: str, key: str | None, path: Path) -> Match:
    """The mapping of a checkpoint that fits best, or the one of this key.

    Raises:
        UsageError: there is none of this key, or several fit and none was named. QrayError: nothing fits.
    """
    found = [match(wanted, given, head, at) for at, given in states(content)]
    if key is not None:
        named = [each for each in found if each.key == key]
        if not named:
            keys = ", ".join(repr(each.key) for each in found) or "none"
            raise UsageError(f"--state-key {key!r}: {path} has no such mapping of tensors; it has {keys}")
        return named[0]
    most = max((len(each.found) for each in found), default=0)
    if 2 * most < len(wanted):
        raise QrayError(
            f"{path}: at most {most} of the architecture's {len(wanted)} weights are in it; is it a checkpoint of "
            "another --arch?"
        )
    best = [each for each in found if len(each.found) == most]
    if len(best) > 1:
        keys = " or ".join(f"--state-key {each.key}" for each in best)
        raise UsageError(
            f"{path}: holds {len(best)} copies of the weights, such as an average of them; name one: {keys}"
        )
    return best[0]


def check(result: Match, missing_ok: Sequence[str], unexpected_ok: Sequence[str], fresh_head: str | None) -> None:
    """Refuse a partial match, but for what was named. fresh_head: the path of a head that is to be made anew.

    Raises:
        UsageError: something is missing, unexpected or of another shape.
    """
    own = f"{fresh_head}." if fresh_head else None
    odd = [each for each in result.misshapen if own is None or not each[0].startswith(own)]
    missing = [n for n in result.missing if not any(fnmatch(n, p) for p in missing_ok)]
    missing = [n for n in missing if own is None or not n.startswith(own)]
    unexpected = [n for n in result.unexpected if not any(fnmatch(n, p) for p in unexpected_ok)]
    unexpected = unexpected if own is None else [n for n in unexpected if result.prefix + own not in n]
    faults = [f"{name} is {list(has)}, not {list(wants)}" for name, wants, has in odd]
    if missing:
        faults.append(f"missing: {_listed(missing)} (--missing-ok PATTERN leaves them as they are made, at random)")
    if unexpected:
        faults.append(f"unexpected: {_listed(unexpected)} (--unexpected-ok PATTERN leaves them out)")
    if odd:
        faults.append(
            "qray takes a network whose head gives one number for a clip; --fresh-head makes a new head, to be trained"
        )
    if faults:
        raise UsageError("the checkpoint fits the architecture only in part: " + "; ".join(faults))
