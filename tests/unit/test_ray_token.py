"""A token for Ray wherever HOME is, and words about the page that asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qray.errors import QrayError
from qray.ray_token import dashboard_words, has_token, provide_token


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable says anything of tokens, and none that a test sets stays."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_home_that_can_be_written_gets_the_token_as_ray_would_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_token(tmp_path)
    assert has_token()
    assert ((tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777, os.environ.get("RAY_AUTH_TOKEN_PATH")) == (
        0o600, None
    )  # fmt: skip


def test_a_token_that_is_there_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("mine")
    provide_token(tmp_path)
    assert (tmp_path / ".ray" / "auth_token").read_text() == "mine"


# Under a file nothing can be written, whoever asks; root could write into a folder without its permission.
@pytest.mark.parametrize("home", ["/dev/null", "/proc/none"])
def test_a_home_that_cannot_be_written_gets_a_token_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    provide_token(tmp_path)
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert path.is_relative_to(tmp_path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert has_token()


def test_without_home_ray_is_told_where_the_token_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "from-passwd")
    provide_token(tmp_path)
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "from-passwd" / ".ray" / "auth_token")


def test_a_user_without_any_home_gets_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert not has_token()
    provide_token(tmp_path)
    assert has_token()


def test_a_named_path_that_cannot_be_written_is_a_sentence_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/dev/null/token")
    with pytest.raises(QrayError, match=r"RAY_AUTH_TOKEN_PATH is /dev/null/token.*set it"):
        provide_token(tmp_path)


@pytest.mark.parametrize("settings", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "given"}])
def test_who_needs_no_file_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    provide_token(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_dashboards_address_says_how_to_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    words = dashboard_words("http://127.0.0.1:8265")
    assert "http://127.0.0.1:8265" in words
    assert "asks for a token, which `ray get-auth-token` prints" in words


def test_a_token_elsewhere_is_named_in_the_command_that_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/tmp/a b/auth_token")
    assert "`RAY_AUTH_TOKEN_PATH='/tmp/a b/auth_token' ray get-auth-token`" in dashboard_words("http://h:1")


def test_where_no_token_is_asked_for_none_is_spoken_of() -> None:
    assert dashboard_words("http://h:1") == "Ray dashboard: http://h:1"
