"""What has arrived of one answer and was not read yet; bounded.

Pieces that a slow reader has not taken are joined into one text; over a limit the answer is given up.
Knows nothing of the connection.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

from appliance.engine.protocol import Delta, Finished, Likelihood
from appliance.engine.tools import CallPiece
from appliance.errors import ApplianceError, SlowClient

# More than a context of 128k tokens of ordinary text.
MAX_UNREAD_CHARACTERS = 1 << 20
# As many characters as a likelihood's bytes and number take, or the name and number of a call's piece.
LIKELIHOOD_CHARACTERS = 32
CALL_PIECE_CHARACTERS = 32


class Answer:
    """Filled by the engine's receiver, emptied by one reader."""

    def __init__(self, request_id: int) -> None:
        self._id = request_id
        self._text = io.StringIO()
        self._likelihoods: list[Likelihood] = []
        self._calls: list[CallPiece] = []
        self._unread_characters = 0
        self._end: Finished | ApplianceError | None = None
        self._arrived = asyncio.Event()

    def add(
        self,
        text: str,
        likelihoods: Sequence[Likelihood] = (),
        calls: Sequence[CallPiece] = (),
    ) -> None:
        if self._end is not None:
            return
        counts = sum(1 + len(each.top) for each in likelihoods)
        self._unread_characters += len(text) + counts * LIKELIHOOD_CHARACTERS
        self._unread_characters += sum(
            CALL_PIECE_CHARACTERS + len(each.arguments) for each in calls
        )
        if self._unread_characters > MAX_UNREAD_CHARACTERS:
            self._take()
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
        self._likelihoods += likelihoods
        self._calls += calls
        self._arrived.set()

    def end(self, how: Finished | ApplianceError) -> None:
        """The first end counts."""
        if self._end is None:
            self._end = how
            self._arrived.set()

    @property
    def ended(self) -> bool:
        return self._end is not None

    def _take(self) -> Delta:
        taken = Delta(
            id=self._id,
            text=self._text.getvalue(),
            calls=self._calls,
            likelihoods=self._likelihoods,
        )
        self._text, self._likelihoods, self._calls = io.StringIO(), [], []
        self._unread_characters = 0
        return taken

    async def read(self) -> Delta | Finished:
        """All text that has arrived, else the end; raises what the answer failed with."""
        await self._arrived.wait()
        if self._text.tell() or self._likelihoods or self._calls:
            if self._end is None:
                self._arrived.clear()
            return self._take()
        assert self._end is not None
        if isinstance(self._end, ApplianceError):
            raise self._end
        return self._end
