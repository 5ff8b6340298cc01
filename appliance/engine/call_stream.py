"""Tells the calls of an answer from its text, while it is written. Knows nothing of tokens.

Text that may turn out to be the beginning of a call is held back. Once a call has begun there is no text any
more: a grammar sees to that.
"""

from __future__ import annotations

import codecs
import re

from appliance.engine.call_format import ID, ID_CHARACTERS, CallFormat
from appliance.engine.tools import CallPiece, Tools


class CallStream:
    """The calls of one answer. `said` is how it begins, in the prompt already, if it has to call."""

    def __init__(self, form: CallFormat, tools: Tools, *, only_at_start: bool = False) -> None:
        """With `only_at_start` an answer that does not begin with a call has none."""
        self.form, self.tools = form, tools
        self.said = form.begun(tools) if tools.must_call else ""
        self.count = 0
        """Calls so far whose name is known."""
        self.complete = False
        """Whether nothing can follow."""
        self._is_single = form.between is None or not tools.is_parallel
        names = list(tools.callable())
        self._triggers = [each.encode() for each in form.triggers(names)]
        self._only_at_start = only_at_start or not form.marker
        self._held = b""
        self._names = "|".join(map(re.escape, names))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.begun = tools.must_call
        """Whether a call has begun."""
        self._head = self._head_after(rf"\s*{re.escape(form.opening.lstrip())}")
        self._arguments: _Object | None = None
        self._unread = self.said
        self._pieces: list[CallPiece] = []

    def begins_with(self, piece: bytes) -> tuple[str, str] | None:
        """If the next bytes make the beginning of a call: what of it was said before, or what leads to it."""
        found = None if self.begun else self._find(piece)
        if found is None:
            return None
        held = self._held[found:].decode()
        return held, piece[: max(0, found - len(self._held))].decode()

    def feed(self, piece: bytes) -> bytes:
        """Take the bytes of one token; returns those of a text that is certain, often none."""
        if self.begun:
            self._read(self._decoder.decode(piece))
            return b""
        found = self._find(piece)
        self._held += piece
        if found is not None:
            text, call = self._held[:found], self._held[found:]
            self.begun, self._held = True, b""
            self._read(self._decoder.decode(call))
            return text.rstrip()
        cut = len(self._held) - self._maybe_call()
        text, self._held = self._held[:cut], self._held[cut:]
        if self._only_at_start and text:
            self._triggers = []
        return text

    def finish(self, *, cut: bool) -> bytes:
        """The rest of the text; `cut` says that the answer did not come to its own end."""
        if self.begun and not cut and not self.count:
            # It only looked like one: the grammar allowed it as a text.
            return self._unread.encode()
        text, self._held = self._held, b""
        return text

    def take_pieces(self) -> list[CallPiece]:
        """Those of calls since the last time."""
        taken, self._pieces = self._pieces, []
        return taken

    # --- where a call begins ---

    def _find(self, piece: bytes) -> int | None:
        """Where in the held bytes and these a call begins that these make certain."""
        data = self._held + piece
        found = [data.find(each) for each in self._triggers if each in data]
        start = min(found, default=len(data))
        if start == len(data) or (self._only_at_start and data[:start].strip()):
            return None
        try:
            # The grammar has to go on from here, and knows whole characters only.
            self._held[start:].decode()
            data[len(self._held) : start].decode()
        except UnicodeDecodeError:
            return None
        return start

    def _maybe_call(self) -> int:
        """How many of the held bytes, the last, may be the beginning of a call, or spaces before one."""
        if not self._triggers:
            return 0
        longest = max(map(len, self._triggers)) - 1
        begun = next(
            (
                length
                for length in range(min(longest, len(self._held)), 0, -1)
                if any(each.startswith(self._held[-length:]) for each in self._triggers)
            ),
            0,
        )
        before = self._held[: len(self._held) - begun]
        spaces = len(before) - len(before.rstrip())
        if self._only_at_start and before.strip():
            return 0
        return begun + spaces

    # --- what a call says ---

    def _head_after(self, before: str) -> re.Pattern[str]:
        return re.compile(f"{before}(?P<name>{self._names}){_pattern(self.form.middle)}")

    def _read(self, text: str) -> None:
        self._unread += text
        while self._unread and not self.complete:
            if self._arguments is None:
                head = self._head.match(self._unread)
                if head is None:
                    return
                self._pieces.append(CallPiece(index=self.count, name=head["name"]))
                self.count += 1
                self._unread = self._unread[head.end() :]
                self._arguments = _Object()
            else:
                end = self._arguments.end(self._unread)
                chunk, self._unread = self._unread[:end], self._unread[end:]
                self._pieces.append(CallPiece(index=self.count - 1, arguments=chunk))
                if self._arguments.ended:
                    self._arguments = None
                    self._head = self._head_after(_pattern(self.form.between or ""))
                    self.complete = self._is_single


class _Object:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = self._escaped = False

    def end(self, text: str) -> int:
        """How many of these characters belong to it."""
        for index, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.ended = True
                    return index + 1
        return len(text)


def _pattern(text: str) -> str:
    return f"[a-zA-Z0-9]{{{ID_CHARACTERS}}}".join(map(re.escape, text.split(ID)))
