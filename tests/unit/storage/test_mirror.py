"""OUT in an object store: what is there is whole, what was removed is gone, and another machine goes on from it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import END_TIMEOUT_S, free_port, wait_until
from support.s3 import Server

from qray.graph.store import COPIED, Store, is_needed
from qray.storage import mirror as module
from qray.storage import place as places
from qray.storage.mirror import STATE, Mirror
from qray.storage.place import StorageError, place_of

MiB = 2**20
Machine = Callable[[str], Store]


@pytest.fixture
def machine(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    """A store on a machine of that name, whose OUT lies on the server, as a run finds it when it begins."""

    def begin(name: str) -> Store:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        mirror = Mirror(server.place(request.node.name), folder, COPIED)
        mirror.look()
        mirror.bring(is_needed)
        return Store(folder, mirror)

    return begin


def finish(store: Store, key: str, content: bytes = b"model") -> None:
    """A build unit that is finished."""
    folder = store.artifact_folder(key)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "artifact.json").write_text("{}")
    store.put("build", key, {"files": [f"artifacts/{key}/model.onnx", f"artifacts/{key}/artifact.json"]})


def send(store: Store) -> None:
    assert store.mirror is not None
    store.mirror.send()


def there(store: Store) -> set[str]:
    assert store.mirror is not None
    return set(store.mirror.place.files())


def test_another_machine_has_what_was_finished_and_fetches_artifacts_when_they_are_asked_for(machine: Machine) -> None:
    first = machine("a")
    finish(first, "k1")
    send(first)
    second = machine("b")
    assert second.get("build", "k1") is not None
    assert not (second.out / "artifacts/k1/model.onnx").exists()
    assert (second.artifact("k1") / "model.onnx").read_bytes() == b"model"


def test_a_unit_without_its_files_is_not_finished_wherever_they_should_be(machine: Machine) -> None:
    first = machine("a")
    finish(first, "k1")
    send(first)
    assert first.mirror is not None
    (first.mirror.place / "artifacts/k1/model.onnx").delete()
    assert machine("b").get("build", "k1") is None


def test_at_every_moment_a_record_that_is_there_has_its_files(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("a")
    finish(store, "k0")
    put, lacking, lock = places.Place.put, list[str](), threading.Lock()
    ended: list[str] = []

    def watched(place: places.Place, *arguments: Any) -> Any:
        done = put(place, *arguments)
        with lock:
            names = there(store)
            for name in names:
                if name.startswith("units/"):
                    lacking.extend({f"artifacts/{name[-7:-5]}/model.onnx"} - names)
            if not ended:
                # Meanwhile another unit ends.
                ended.append("k1")
                finish(store, "k1")
        return done

    monkeypatch.setattr(places.Place, "put", watched)
    for _ in range(2):
        send(store)
    assert {"units/build-k0.json", "units/build-k1.json"} <= there(store)
    assert not lacking


def test_only_what_has_changed_is_sent(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    store, sent = machine("a"), list[str]()
    finish(store, "k1")
    put = places.Place.put
    monkeypatch.setattr(places.Place, "put", lambda place, *more: sent.append(place.name) or put(place, *more))
    send(store)
    assert sorted(sent) == ["artifact.json", "build-k1.json", "model.onnx"]
    again = machine("a")
    again.put("build", "k1", {"files": [], "unfinished": "it was bad"})
    sent.clear()
    send(again)
    assert sent == ["build-k1.json"]


def test_what_a_kill_kept_from_being_sent_is_sent_by_the_next_run_on_that_machine(machine: Machine) -> None:
    finish(machine("a"), "k1")
    send(machine("a"))
    assert machine("b").get("build", "k1") is not None


def test_a_copy_that_another_machine_left_behind_takes_over_what_that_one_did(machine: Machine) -> None:
    old = machine("a")
    finish(old, "k1")
    old.save_checkpoint("t", 0, b"zero")
    send(old)
    other = machine("b")
    other.save_checkpoint("t", 1, other.latest_checkpoint("t"))
    (other.out / "units/build-k1.json").unlink()
    (other.out / "report.md").write_text("of b")
    send(other)
    again = machine("a")
    assert again.get("build", "k1") is None
    assert bytes(again.latest_checkpoint("t")) == b"zero"
    assert [path.name for path in (again.out / "checkpoints/t").iterdir()] == ["epoch-0001.pt"]
    assert (again.out / "report.md").read_text() == "of b"
    send(again)
    assert there(again) == there(other)


def test_old_checkpoints_go_when_the_new_one_is_there(machine: Machine) -> None:
    store = machine("a")
    for epoch in range(3):
        store.save_checkpoint("t", epoch, b"%d" % epoch)
        send(store)
        assert there(store) == {f"checkpoints/t/epoch-{epoch:04d}.pt"}


def test_what_is_not_of_out_is_neither_sent_nor_brought_nor_removed(machine: Machine, server: Server) -> None:
    store = machine("a")
    assert store.mirror is not None
    (store.mirror.place / "notes.txt").write_bytes(b"mine")
    for name in ("sweep/state.json", "other.txt", "units/.tmp-1234-build-k.json", ".held"):
        path = store.out / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("here")
    store = machine("a")
    send(store)
    assert there(store) == {"notes.txt"}
    store.mirror.clear()
    assert there(store) == {"notes.txt"}


def test_what_cannot_be_sent_ends_the_run_with_a_sentence_and_is_sent_by_the_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 1.0)
    monkeypatch.setattr(module, "EVERY_S", 0.1)
    folder = tmp_path / "copy"
    folder.mkdir()
    mirror = Mirror(Server(free_port()).place("run"), folder, COPIED)
    mirror._thread.start()
    store = Store(folder, mirror)
    finish(store, "k1")
    wait_until(lambda: mirror._fault is not None, "the fault", END_TIMEOUT_S)
    with pytest.raises(StorageError, match=r"does not answer \(.*\)\. Nothing is lost: what was finished is kept in"):
        store.check()
    mirror._thread.join()
    again = Mirror(server.place("sent later"), folder, COPIED)
    again.look()
    again.send()
    assert "units/build-k1.json" in server.names("sent later")


def test_no_credentials_are_written_anywhere(machine: Machine, tmp_path: Path) -> None:
    store = machine("a")
    finish(store, "k1")
    send(store)
    assert (store.out / STATE).is_file()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"qray-test-secret" not in written
    assert b"anybody" not in written


#: Sends, or fetches, a file under a limit, and says by how much that made this process grow, in bytes.
TRAVEL = """
import json, resource, sys
from pathlib import Path
from qray.storage.place import place_of
uri, way, name = sys.argv[1:]
place, path = place_of(uri), Path(name)
(place / "small").write_bytes(b"x")
(place / "small").read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(place / "big").put(path) if way == "put" else (place / "big").fetch(path)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))
"""


def test_a_large_file_travels_in_pieces_both_ways(server: Server, tmp_path: Path) -> None:
    size = 96 * MiB
    big, back = tmp_path / "big", tmp_path / "back"
    with big.open("wb") as file:
        for number in range(size // MiB):
            file.write(number.to_bytes(4, "big") * (MiB // 4))
    for way, path in (("put", big), ("fetch", back)):
        done = subprocess.run(
            [sys.executable, "-c", TRAVEL, server.uri("large"), way, str(path)], capture_output=True, text=True,
            timeout=5 * END_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        grown = json.loads(done.stdout)
        assert grown < 56 * MiB, f"{way}: {grown / MiB:.0f} MiB for a file of {size / MiB:.0f}"
    assert big.read_bytes() == back.read_bytes()
    place = place_of(server.uri("large/big"))
    assert not isinstance(place, Path)
    place.delete()
