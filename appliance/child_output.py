"""What a child writes: logged line by line, and the last of it kept to explain a death.

Knows nothing of the process itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

logger = logging.getLogger(__name__)

LAST_WORDS_BYTES = 8 * 1024
# asyncio's own limit for one line of output; a longer line is cut, not an error.
LINE_LIMIT_BYTES = 64 * 1024


class ChildOutput:
    """The output of one child; holds no more than its last words, whatever it writes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: deque[str] = deque()
        self._size = 0

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Take every line until the end of the stream."""
        while True:
            try:
                raw = await stream.readline()
            except ValueError:
                # A line over the limit: asyncio has dropped it from its buffer.
                raw = b"(a line too long to show)\n"
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            self._remember(line.encode()[: LAST_WORDS_BYTES - 1].decode("utf-8", "ignore"))
            logger.debug("child output", extra={"child": self._name, "line": line})

    @property
    def last_line(self) -> str:
        """The last line that was not empty."""
        return next((line for line in reversed(self._lines) if line.strip()), "no output")

    @property
    def text(self) -> str:
        """The last words: whole lines, at most LAST_WORDS_BYTES of them, their ends included."""
        return "\n".join(self._lines)

    def _remember(self, line: str) -> None:
        self._lines.append(line)
        self._size += _size_of(line)
        while self._size > LAST_WORDS_BYTES and len(self._lines) > 1:
            self._size -= _size_of(self._lines.popleft())


def _size_of(line: str) -> int:
    return len(line.encode()) + 1
