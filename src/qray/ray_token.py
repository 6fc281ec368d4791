"""Ray's token authentication, for those who attach: Ray itself looks for a token only where it starts a cluster."""

from __future__ import annotations

import os
from pathlib import Path


def use_token_if_there_is_one() -> None:
    """Send this user's token to the cluster that is attached to, unless RAY_AUTH_MODE says otherwise.

    A local Ray writes ~/.ray/auth_token; every `ray start --head` after that asks for it, while `ray.init(address=...)`
    and the job client send none until RAY_AUTH_MODE is `token`. A cluster that asks for none ignores it. Must be called
    before ray is imported, which is when Ray reads its environment.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_MODE" not in os.environ and (os.environ.get("RAY_AUTH_TOKEN") or path.is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"
