"""Ray's token authentication: Ray looks for a token only where it starts a cluster, and writes one only at home."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shlex
from pathlib import Path

from qray.errors import QrayError
from qray.ray_address import ask_dashboard, ask_head, driver_address
from qray.scratch import scratch_folder


def default_token_path() -> Path | None:
    """~/.ray/auth_token, or None for a user without a home."""
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError:
        return None


def has_token() -> bool:
    """Whether this user has a token that Ray would find."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else default_token_path()
    try:
        return bool(os.environ.get("RAY_AUTH_TOKEN")) or (path is not None and path.is_file())
    except OSError:
        return False


def use_token_if_asked() -> None:
    """Send this user's token to the cluster of RAY_ADDRESS if that asks for one; `use_token_at_head` of it.

    Raises:
        QrayError: RAY_ADDRESS is no address.
    """
    address = driver_address()
    if address not in (None, "auto") and _undecided() and ask_head(str(address)) == "token":
        os.environ["RAY_AUTH_MODE"] = "token"


def use_token_at_dashboard(address: str) -> None:
    """The same for `qray submit`: `address` is "http://HOST:PORT"."""
    if _undecided() and ask_dashboard(address) == "token":
        os.environ["RAY_AUTH_MODE"] = "token"


def _undecided() -> bool:
    """A local Ray writes ~/.ray/auth_token; every `ray start --head` after that asks for it, while
    `ray.init(address=...)` and the job client send none until RAY_AUTH_MODE is `token`. A driver in that mode asks for
    tokens itself, so that it would never hear from a cluster without: hence the question first. It must be put before
    ray is imported, which is when Ray reads its environment."""
    return has_token() and "RAY_AUTH_MODE" not in os.environ


def provide_token(root: Path) -> None:
    """See to it that a local Ray finds a token. It makes one for itself, in the home alone: where that cannot be
    written, or HOME does not say where it is, one is made in a folder under `root` that only this user may read, and
    that lasts as long as this process.

    Raises:
        QrayError: RAY_AUTH_TOKEN_PATH names a file that is not there and cannot be made.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named:
        try:
            _make_token(Path(named))
        except OSError as error:
            raise QrayError(
                f"RAY_AUTH_TOKEN_PATH is {named}, where no token is and none can be written ({error.strerror}); set it "
                "to a file of yours, or unset it"
            ) from None
        return
    path = default_token_path()
    try:
        if path is None:
            raise FileNotFoundError
        _make_token(path)
        if "HOME" in os.environ:
            return
    except OSError:
        as_long_as_this_process = contextlib.ExitStack()
        atexit.register(as_long_as_this_process.close)
        path = as_long_as_this_process.enter_context(scratch_folder("token", root)) / "auth_token"
        _make_token(path)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _make_token(path: Path) -> None:
    """Write a token, for this user's eyes, unless there is one."""
    if path.is_file() and path.stat().st_size:
        path.read_bytes()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))
    temporary.replace(path)


def dashboard_words(url: str | None) -> str:
    """Where Ray's dashboard is, and what its page asks for."""
    if not url:
        return "no Ray dashboard"
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"Ray dashboard: {url}"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    where = f"RAY_AUTH_TOKEN_PATH={shlex.quote(path)} " if path else ""
    return f"Ray dashboard: {url} (its page asks for a token, which `{where}ray get-auth-token` prints)"
