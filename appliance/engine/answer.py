"""What has arrived of one answer and was not read yet; bounded.

Pieces that a slow reader has not taken are joined into one text; over a limit the answer is given up.
Knows nothing of the connection.
"""

from __future__ import annotations

import asyncio
import io

from appliance.engine.protocol import Delta, Finished
from appliance.errors import ApplianceError, SlowClient

# More than a context of 128k tokens of ordinary text.
MAX_UNREAD_CHARACTERS = 1 << 20


class Answer:
    """Filled by the engine's receiver, emptied by one reader."""

    def __init__(self, request_id: int) -> None:
        self._id = request_id
        self._text = io.StringIO()
        self._end: Finished | ApplianceError | None = None
        self._arrived = asyncio.Event()

    def add(self, text: str) -> None:
        if self._end is not None:
            return
        if self._text.tell() + len(text) > MAX_UNREAD_CHARACTERS:
            self._text = io.StringIO()
            self.end(
                SlowClient(
                    "answer_not_read",
                    f"at most {MAX_UNREAD_CHARACTERS} characters of an answer wait to be read; "
                    "this one has more",
                    next_step="read the answer while it is written",
                )
            )
            return
        self._text.write(text)
        self._arrived.set()

    def end(self, how: Finished | ApplianceError) -> None:
        """The first end counts."""
        if self._end is None:
            self._end = how
            self._arrived.set()

    @property
    def ended(self) -> bool:
        return self._end is not None

    async def read(self) -> Delta | Finished:
        """All text that has arrived, else the end; raises what the answer failed with."""
        await self._arrived.wait()
        if text := self._text.getvalue():
            self._text = io.StringIO()
            if self._end is None:
                self._arrived.clear()
            return Delta(id=self._id, text=text)
        assert self._end is not None
        if isinstance(self._end, ApplianceError):
            raise self._end
        return self._end
