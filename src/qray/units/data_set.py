"""The data set of a run: the user's folder, or the synthetic set made on first use, and its manifest."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qray.atomic import write_parquet
from qray.data.manifest import Manifest, check_manifest, read_manifest, write_rejected
from qray.data.probe import Probe
from qray.data.probing import end_probing
from qray.data.splits import SPLITS
from qray.errors import QrayError
from qray.graph.store import Store
from qray.storage.place import Place, place_of
from qray.study import Data
from qray.synthetic.generate import is_complete, synthesize

#: What is kept of each file: what changes when it does, and the facts of `Probe`, whose fields these are.
FACTS = {field.name: str(field.type) for field in fields(Probe)}
TYPES = {"int": pa.int64(), "float": pa.float64()}
PROBES = pa.schema([
    pa.field("key", pa.string(), nullable=False),
    *(pa.field(name, TYPES.get(kind, pa.string()), nullable="None" in kind) for name, kind in FACTS.items()),
])  # fmt: skip


def data_folder(data: Data) -> Path | Place:
    """Where the data set is, or where the synthetic one is kept: data/ under the working directory."""
    if data.dir is not None:
        place = place_of(data.dir, "data.dir")
        return place.expanduser().resolve() if isinstance(place, Path) else place
    s = data.synthetic
    return Path("data").resolve() / f"synthetic-{s.seed}-{s.train}-{s.val}-{s.test}"


def check_place(data: Data) -> None:
    """Find out at once, before anything else is loaded, whether there is such a folder, or a store that lets us in.

    Raises:
        QrayError: there is not.
    """
    root = data_folder(data) if data.dir is not None else None
    if isinstance(root, Place):
        root.check()
    elif root is not None and not root.is_dir():
        raise QrayError(f"{data.dir}: no such folder; name the data set's folder with --data")


def ensure_data(data: Data) -> Path | Place:
    """The data set's folder; makes the synthetic set if that is wanted and not complete."""
    root = data_folder(data)
    if isinstance(root, Path) and data.dir is None:
        s = data.synthetic
        counts = {"TRAIN": s.train, "VAL": s.val, "TEST": s.test}
        if not is_complete(root, counts, s.seed):
            synthesize(root, counts, s.seed)
    return root


def _known(cache: Path) -> dict[str, Probe]:
    """What an earlier run told of files; nothing where that cannot be read."""
    try:
        table = pq.read_table(cache, partitioning=None)
        # Cast, since that alone refuses nulls where there must be none.
        keys, *columns = (table.cast(PROBES)[name].to_pylist() for name in PROBES.names)
    except (OSError, ValueError, pa.ArrowException):
        return {}
    return {key: Probe(*facts) for key, *facts in zip(keys, *columns, strict=True)}


def load_manifest(store: Store, root: Path | Place, data: Data) -> Manifest:
    """Read, check and record the manifest. Files that were probed before and have not changed are not read again.

    Raises:
        QrayError: too many bad rows, or a split without clips; rejected.parquet is written all the same.
    """
    cache = store.out / "units" / "probes.parquet"
    known = _known(cache)
    try:
        manifest = read_manifest(root, data, known)
    finally:
        end_probing()
    if manifest.probes != known:
        columns = {name: [getattr(facts, name) for facts in manifest.probes.values()] for name in FACTS}
        write_parquet(cache, pa.table({"key": list(manifest.probes), **columns}, schema=PROBES))
    write_rejected(manifest, store.out / "rejected.parquet")
    check_manifest(manifest, data)
    _record(store, manifest)
    return manifest


def _record(store: Store, manifest: Manifest) -> None:
    """Keep what a model card says of the data set: the videos themselves may be gone when it is written."""
    if store.get("data", manifest.digest) is not None:
        return
    # OUT has one data set; the record of one that it had before would be taken for it.
    for path in (store.out / "units").glob("data-*.json"):
        path.unlink()
    splits: dict[str, dict[str, float]] = {}
    for name in SPLITS:
        target = manifest.split(name)["target"]
        splits[name] = {"clips": len(target)}
        if len(target):
            splits[name] |= {"mean": float(target.mean()), "min": float(target.min()), "max": float(target.max())}
    store.put("data", manifest.digest, {"digest": manifest.digest, "splits": splits})
