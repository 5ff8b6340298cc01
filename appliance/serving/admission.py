"""How many answers may be waited for at once: so many for each model, and no client keeps the others out.

Counts answers, not requests: one request may ask for several. Knows neither engines nor who a client is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import Busy, Unavailable


class Admission:
    """Places by the file of a model. Belongs to one event loop.

    Anybody may take any place that is free. Where too few are, a client still gets in that holds nothing
    yet, or would hold no more than its equal share: whoever came first and took them all has to wait until
    it holds less than others. So more than all places are taken only by clients that share them.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._held: dict[Path, Counter[str]] = {}
        self._left = asyncio.Event()

    @contextmanager
    def place(self, name: str, path: Path, client: str, answers: int) -> Iterator[None]:
        """Hold so many places while the block runs; raises Busy if there are too few."""
        held = self._held.setdefault(path, Counter())
        self._refuse_if_full(name, held, client, answers)
        held[client] += answers
        try:
            yield
        finally:
            held[client] -= answers
            if not held[client]:
                del held[client]
            if not held:
                del self._held[path]
                self._left.set()

    async def wait_empty(self) -> None:
        """Return when nobody holds a place."""
        while self._held:
            self._left.clear()
            await self._left.wait()

    def _refuse_if_full(self, name: str, held: Counter[str], client: str, answers: int) -> None:
        own = held[client] + answers
        share = self._places // len({*held, client})
        if held[client] and held.total() + answers > self._places and own > share:
            raise Busy(
                "rate_limit_exceeded",
                f"at most {self._places} answers may be waited for at once of {name!r}, and one client's "
                f"share is {share} while others wait; {held.total()} are, {held[client]} of them by you",
                next_step="try again in a moment",
            )


def stopping() -> Unavailable:
    """The refusal of whatever is asked while the appliance is being stopped."""
    return Unavailable(
        "stopping", "the appliance is being stopped", next_step="try again when it is back"
    )
