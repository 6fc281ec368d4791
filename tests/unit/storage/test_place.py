"""URIs as users write them, and what stores answer, as sentences that come soon."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.runs import free_port, main_here
from support.s3 import Server

from qray.errors import UsageError
from qray.storage.connect import connect
from qray.storage.place import Place, StorageError, place_of


@pytest.fixture
def fresh_connections() -> Iterator[None]:
    """Connections of this test's environment, which nobody uses after it."""
    connect.cache_clear()
    yield
    connect.cache_clear()


@pytest.mark.parametrize("text", [
    "s3://bucket", "s3://bucket/a b/c", "s3://bucket/a?endpoint_override=127.0.0.1:9000&scheme=http",
    "s3://bucket/100%25/%23.avi", "gs://bucket/set", "gs://anonymous@bucket/set", "abfs://container@account.dfs.core.windows.net/set",
])  # fmt: skip
def test_a_uri_is_read_as_it_is_said(text: str) -> None:
    place = place_of(text)
    assert isinstance(place, Place)
    assert place_of(str(place)) == place
    assert str(place / "x").partition("?")[0] == f"{text.partition('?')[0]}/x"


@pytest.mark.parametrize("text", ["/data/set", "file:///data/set", "file://localhost/data/set", "file:/data/set"])
def test_a_local_folder_is_one_however_it_is_named(text: str) -> None:
    assert place_of(text) == Path("/data/set")


@pytest.mark.parametrize(("text", "words"), [
    ("s3://key:secret@bucket/set", "credentials do not belong into a URI"),
    ("s3://key@bucket/set", "credentials do not belong into a URI"),
    ("abfs://c:secret@account.dfs.core.windows.net/set", "credentials do not belong into a URI"),
    ("s3://bucket/set?secret_key=secret", "'secret_key' is no setting of s3://; those are endpoint_override, region"),
    ("s3:/bucket/set", "expected s3://BUCKET/PATH"), ("s3:///set", "it names no bucket"),
    ("http://host/set", "http:// is not known here"), ("file://host/set", "expected file:///ABSOLUTE/PATH"),
    ("s3://bucket/a#b", "written with %23"), ("s3://bucket/../other", "are no folders of an object store"),
])  # fmt: skip
def test_a_bad_uri_is_a_usage_error_that_tells_no_secret(text: str, words: str) -> None:
    with pytest.raises(UsageError) as found:
        place_of(text, "--data")
    assert words in str(found.value)
    assert str(found.value).startswith("--data ")
    assert "secret@" not in str(found.value)
    assert "=secret" not in str(found.value)


def test_a_bad_uri_in_a_study_is_named_by_key_and_line_and_tells_no_secret(tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text(
        "name: mine\ndata:\n  dir: s3://key:hushhush@bucket/set\n"
        "variants: [{name: fp32, method: fp32, engine: eager}]\n"
    )
    done = main_here("run", "all", "--study", study, "--out", tmp_path / "out")
    assert done.code == 2
    assert f"{study}, line 3: data.dir: the data set's 's3://key:...@bucket/set': credentials do not" in done.stderr
    assert "hushhush" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_of_objects_may_hold_anything(server: Server, tmp_path: Path) -> None:
    place, name = server.place("names") / "a b" / "100%", "x#y?z&=é;.avi"
    (place / name).write_bytes(b"frames")
    assert list(server.place("names").files()) == [f"a b/100%/{name}"]
    again = place_of(str(place / name))
    assert isinstance(again, Place)
    assert again.read_bytes() == b"frames"


@pytest.mark.parametrize("option", ["--data", "--out"])
def test_a_bucket_that_is_not_there_is_a_sentence(option: str, server: Server, tmp_path: Path) -> None:
    done = main_here("run", "all", option, server.uri("set", "nowhere"), *_rest(option, tmp_path))
    assert done.code == 1
    assert "there is no bucket 'nowhere'; make it, or name another" in done.stderr


def _rest(option: str, folder: Path) -> tuple[object, ...]:
    """The other place, which is a folder that is there."""
    return ("--out", folder / "out") if option == "--data" else ("--data", folder)


@pytest.mark.parametrize("option", ["--data", "--out"])
def test_a_store_that_is_not_there_is_a_sentence_soon(
    option: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    done = main_here("run", "all", option, Server(free_port()).uri("set"), *_rest(option, tmp_path))
    assert done.code == 1
    assert "does not answer" in done.stderr
    assert time.monotonic() - began < 60


def test_a_store_that_never_says_a_word_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr("qray.storage.connect.SILENCE_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        began = time.monotonic()
        with pytest.raises(StorageError, match="does not answer"):
            Server(silent.getsockname()[1]).place("set").check()
    assert time.monotonic() - began < 30


def test_without_credentials_the_sentence_says_where_they_come_from(
    server: Server, fresh_connections: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server.place("closed") / "FileList.csv").write_bytes(b"FileName,EF,Split")
    connect.cache_clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    done = main_here("data", "check", server.uri("closed"))
    assert done.code == 1
    assert "access is denied" in done.stderr
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE)" in done.stderr


def test_the_endpoint_may_come_from_the_environment(
    server: Server, fresh_connections: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server.place("env") / "a").write_bytes(b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    place = place_of("s3://bucket/env")
    assert isinstance(place, Place)
    assert list(place.files()) == ["a"]
