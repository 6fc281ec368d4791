"""Other runs of the cluster: together they leave the slot free that decoding needs, and none keeps the others out."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

#: The name of each run's board, in the namespace of its session, and how such namespaces begin.
BOARD, NAMESPACE = "board", "qray-"
LOOK_EVERY_S = 2.0
#: After so long every run that was there before knows of this one.
KNOWN_AFTER_S = 2 * LOOK_EVERY_S
ANSWER_TIMEOUT_S = 10.0


class Neighbours:
    """Where several runs hold slots of a cluster, each says on its board how many it holds or is about to, and reads
    those of the others before it holds more: of two that do so at once, one at least sees the other's word. A run that
    dies takes its board with it.

    board: this run's own.
    """

    def __init__(self, board: Any) -> None:
        self._board, self._began = board, time.monotonic()
        self._others: list[Any] = []
        self._looked = -LOOK_EVERY_S
        self._said = (0, False)

    def say(self, held: int, waits: bool) -> None:
        """That this run holds so many slots, and whether it waits for more. Never waits for an answer."""
        if self._said != (held, waits):
            self._said = held, waits
            self._board.hold.remote(held, waits)

    def leave_room(self, held: int, more: int, holders: int) -> bool:
        """Whether this run, which holds so many of the `holders` slots, may hold more: no more than its share, if
        others hold or wait, and no more than they leave. If so, that it does is said already."""
        self._look()
        if not self._others:
            return True
        if time.monotonic() - self._began < KNOWN_AFTER_S:
            return False
        self._said = held + more, True
        try:
            # Said first, and only then read.
            ray.get(self._board.hold.remote(*self._said), timeout=ANSWER_TIMEOUT_S)
            theirs = self._answers()
        except ActorDiedError:
            # This run's own board: it does without neighbours from here on.
            return True
        except RayError:
            return False
        busy = [slots for slots, waits in theirs if slots or waits]
        share = max(1, holders // (1 + len(busy)))
        fits = held + more + sum(busy) <= holders
        if fits and (held == 0 or held + more <= share):
            return True
        self.say(held, True)
        return False

    def _answers(self) -> list[tuple[int, bool]]:
        """What each of the others holds, and whether it waits."""
        found = []
        for other in list(self._others):
            try:
                found.append(ray.get(other.held.remote(), timeout=ANSWER_TIMEOUT_S))
            except GetTimeoutError:
                raise
            except RayError:
                self._others.remove(other)
        return found

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked, self._others = time.monotonic(), []
        mine = ray.get_runtime_context().namespace
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name, space = actor["name"], actor["namespace"]
            if name.startswith(BOARD) and space.startswith(NAMESPACE) and space != mine:
                try:
                    self._others.append(ray.get_actor(name, namespace=space))
                except ValueError:
                    # It has just ended.
                    continue
