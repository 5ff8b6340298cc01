"""When a model whose engine died may be loaded again: at once after one death, ever later after many.

Counts the deaths of engines by the file that they had loaded, or were loading. Knows no engines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from appliance.errors import Unavailable

# The wait before the second start in a row; each further one doubles it.
SECOND_START_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
# An engine that has lived so long has served, even if nobody asked it anything.
SERVED_SECONDS = 10.0
# Whoever asks waits for a start that is so near, and is told to come back for any later one.
NEAR_SECONDS = 5.0


@dataclasses.dataclass
class _Deaths:
    """In a row, without an engine that served between them."""

    count: int
    last_words: str
    start_at: float


class Backoff:
    """Belongs to one event loop. `now` gives seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._deaths: dict[Path, _Deaths] = {}

    def died(self, path: Path, last_words: str, *, served: bool = False) -> float:
        """Note the death of an engine, while it loaded or later; returns the wait in seconds."""
        before = self._deaths.get(path)
        count = 1 if before is None or served else before.count + 1
        wait_seconds = _wait_seconds(count)
        self._deaths[path] = _Deaths(count, last_words, self._now() + wait_seconds)
        return wait_seconds

    def forget(self, path: Path) -> None:
        """This file begins anew."""
        self._deaths.pop(path, None)

    def seconds_left(self, path: Path) -> float:
        """Until it may be started; 0 if that is now."""
        deaths = self._deaths.get(path)
        return 0.0 if deaths is None else max(0.0, deaths.start_at - self._now())

    async def wait(self, path: Path) -> None:
        """Return when it may be started."""
        await asyncio.sleep(self.seconds_left(path))

    def refuse_if_far(self, name: str, path: Path) -> None:
        """Raise Unavailable if its next start is too far away to be waited for."""
        left = self.seconds_left(path)
        if left > NEAR_SECONDS:
            deaths = self._deaths[path]
            raise Unavailable(
                "engine_restarting",
                f"{name} should answer, but its engine has ended {deaths.count} times in a row, and is "
                f"started again in {left:.0f} s; it said last: {deaths.last_words}",
                next_step="try again then; the daemon's log has its last lines",
                retry_after_seconds=left,
            )


def _wait_seconds(count: int) -> float:
    """After so many deaths in a row. The exponent is bounded, a float's is not without end."""
    if count == 1:
        return 0.0
    return min(LONGEST_WAIT_SECONDS, SECOND_START_SECONDS * 2.0 ** min(count - 2, 30))
