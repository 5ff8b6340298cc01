"""Turn the bytes of sampled tokens into text that may be sent on at once.

Never splits a character, never lets out a stop string or a part of one. Knows nothing of tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer, released as soon as no later byte can change it."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        # An unfinished character waits for its next byte; only what can never become one is replaced.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        """Whether a stop string has ended the text."""

    def feed(self, piece: bytes) -> str:
        """Take the bytes of one token; returns what may be sent, often nothing."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """The rest of a text that ended without a stop string."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [index for stop in self._stop if (index := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            released, self._held = self._held[: min(found)], ""
            return released
        cut = len(self._held) - self._unfinished_stop()
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def _unfinished_stop(self) -> int:
        """Length of the longest end of the held text that a stop string could begin with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
