"""Text of a user that looks like a control token stays text: nobody forges a turn by writing `<|im_start|>`.

Before a conversation is rendered, whatever in its contents reads like a control token is replaced by a mark;
after it, the marks tell which parts of the rendered text are to be tokenised as plain text. Trainer and
engine both do it, so that both see the same tokens.

Knows nothing of templates or of tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# A noncharacter of Unicode, which no text for interchange has; one that has it all the same is marked, too.
MARK = "\ufdd0"
_MARKED = re.compile(f"{MARK}([0-9]+){MARK}")


class Piece(NamedTuple):
    """A part of a rendered text. `start` and `stop` say where it stands in that text, marks and all."""

    text: str
    is_plain: bool
    """Whether it is to be tokenised without looking for control tokens."""
    start: int
    stop: int


class ControlText:
    """The control tokens of one vocabulary."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._texts = [MARK, *sorted({each for each in tokens if each})]
        self._numbers = {text: number for number, text in enumerate(self._texts)}
        self._any = re.compile(_any_of(self._texts))

    def hide(self, content: str) -> str:
        """The content with marks in place of what reads like a control token; mostly the content itself."""
        return self._any.sub(lambda found: f"{MARK}{self._numbers[found[0]]}{MARK}", content)

    def parts(self, text: str, most: int) -> Iterator[str]:
        """The text cut before control tokens, with at most so many of them in each part."""
        begin = 0
        for number, found in enumerate(self._any.finditer(text)):
            if number and number % most == 0:
                yield text[begin : found.start()]
                begin = found.start()
        yield text[begin:]

    def pieces(self, rendered: str) -> Iterator[Piece]:
        """The parts of a text that was rendered from hidden contents, in order; what was hidden is back."""
        end = 0
        for found in _MARKED.finditer(rendered):
            if found.start() > end:
                yield Piece(rendered[end : found.start()], False, end, found.start())
            yield Piece(self._texts[int(found[1])], True, found.start(), found.end())
            end = found.end()
        if end < len(rendered):
            yield Piece(rendered[end:], False, end, len(rendered))


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of some texts, as tokenizers take it.

    By their common beginnings, so that a text of nothing but "<" is not compared with every token.
    """
    by_first: dict[str, list[str]] = {}
    may_end = False
    for text in texts:
        if text:
            by_first.setdefault(text[0], []).append(text[1:])
        else:
            may_end = True
    if not by_first:
        return ""
    branches = "|".join(re.escape(first) + _any_of(rest) for first, rest in by_first.items())
    return f"(?:{branches})?" if may_end else f"(?:{branches})"
