"""How what actors leave reaches the driver, which alone writes OUT."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


class Mailbox:
    """An actor where others leave what they have; the driver empties it. It holds no CPU."""

    def __init__(self) -> None:
        self._items: list[Any] = []

    def __repr__(self) -> str:
        import ray

        return ray.get_runtime_context().get_actor_name() or "mailbox"

    def post(self, item: Any) -> None:
        """Leave an item."""
        self._items.append(item)

    def take(self) -> list[Any]:
        """Everything left since the last call."""
        items, self._items = self._items, []
        return items


class Letters:
    """The driver's end of a mailbox, which it starts; `mailbox` is what others post to."""

    #: How long the last letters are waited for.
    TIMEOUT_S = 300.0

    def __init__(self, label: str) -> None:
        from qray.graph.telemetry import start_actor

        self.mailbox = start_actor(Mailbox, label)
        self._asked: Any = None

    def take(self, wait_s: float = 0.0) -> list[Any]:
        """What has come; by default without waiting, since the loop that polls serves all other units too."""
        import ray

        self._asked = self._asked or self.mailbox.take.remote()
        if not ray.wait([self._asked], timeout=wait_s)[0]:
            return []
        items, self._asked = ray.get(self._asked), None
        return items

    def take_all(self) -> list[Any]:
        """The rest, once nobody posts any more; nothing where the mailbox itself is gone."""
        from ray.exceptions import RayError

        items: list[Any] = []
        with suppress(RayError):
            # Twice: the first answer may have been asked for before the last letter was posted.
            for _ in range(2):
                items += self.take(self.TIMEOUT_S)
        return items
