"""How a model writes a call of a function, found out from its own chat template.

A template that knows tools is given a conversation with calls in it; what stands around their names and
arguments is the format. No family of models is known by name. A template that does not know tools, or
writes calls in a way that is not a name followed by a JSON object, gets a format of ours: Hermes'.

Knows nothing of tokens.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from appliance.engine.renderer import TemplateTooSlow
from appliance.engine.tools import Tools
from appliance.errors import InvalidInput
from appliance.prompts import Template

# Words that no template has of its own.
_TOOL, _FIRST, _SECOND, _KEY = "zqtool", "zqfirst", "zqsecond", "zqkey"
_TEXT, _RESULT = "zqtext", "zqresult"
_ARGUMENTS = re.compile(rf'\{{\s*"{_KEY}"\s*:\s*"[12]"\s*\}}')
# Some templates take no other ids than of nine letters and digits, and write them out.
ID = "zq0000000"
ID_CHARACTERS = 9
_USER = {"role": "user", "content": "zquser"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "zq",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
        },
    }
]


class CallFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What stands around names and arguments; where `ID` stands, a model writes nine letters and digits."""

    opening: str
    """From where an answer begins to the first name."""
    middle: str
    """From a name to its arguments."""
    between: str | None
    """From arguments to the next name; None where an answer has one call only."""
    closing: str
    """After the last arguments."""
    is_native: bool = True
    """Whether the template renders tools, calls and results by itself."""
    arguments_are_text: bool = False
    """Whether the template wants arguments as JSON text, not as an object."""
    empty_content: str | None = None
    """What the template wants as the content of a turn that says nothing beside its calls."""
    unsaid: str = ""
    """What the template opens an answer with, but not one that calls: thoughts."""

    @property
    def marker(self) -> str:
        """What tells wherever it stands that a call begins; "" if the format has nothing of the kind."""
        word = next(iter(self.opening.partition("{")[0].split()), "")
        is_telling = re.match(r"[^\w\s]", word) and re.search(r"\w", word)
        return word if is_telling else ""

    def triggers(self, names: Iterable[str]) -> list[str]:
        """The texts with which a call begins; without a marker they are told by the function's name."""
        if self.marker:
            return [self.marker]
        return [self.opening.lstrip() + name + self.middle[:1] for name in names]

    def begun(self, tools: Tools) -> str:
        """How an answer begins that has to call: as far as it can only go on in one way."""
        names = list(tools.callable())
        known = self.opening + names[0] + self.middle if len(names) == 1 else self.opening
        # A space belongs to the token that follows it.
        return known.partition(ID)[0].rstrip()

    def texts(self) -> list[str]:
        """Everything that the format makes a model write."""
        return [self.opening, self.middle, self.between or "", self.closing]


HERMES = CallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
    is_native=False,
)


def detect(template: Template, ends: Sequence[str]) -> CallFormat:
    """The format of a template whose turns end with one of `ends`, or else Hermes'."""
    prompt = _rendered(template, [_USER], add_generation_prompt=True)
    told = _rendered(template, [_USER, {"role": "assistant", "content": _TEXT}, _USER])
    before_text = (told or "").partition(_TEXT)[0] if told and _TEXT in told else ""
    unsaid = ""
    if prompt and before_text and prompt.startswith(before_text):
        unsaid = prompt.removeprefix(before_text)
        # What is closed already is over.
        unsaid = "" if "</" in unsaid else unsaid
    if prompt and _TOOL in prompt:
        starts = [each for each in (prompt, before_text) if each]
        for found in _formats(template, starts, ends):
            return msgspec.structs.replace(found, unsaid=unsaid)
    return msgspec.structs.replace(HERMES, unsaid=unsaid)


def _formats(
    template: Template, starts: Sequence[str], ends: Sequence[str]
) -> Iterator[CallFormat]:
    """Those that the template takes: first with two calls, without a content, and with objects."""
    for count, content, is_text in itertools.product((2, 1), (None, ""), (False, True)):
        text = _rendered(template, _conversation(count, content, is_text))
        if text is None or _RESULT not in text:
            continue
        found = _read(text, count, starts, ends)
        if found is not None:
            yield msgspec.structs.replace(found, arguments_are_text=is_text, empty_content=content)


def _conversation(count: int, content: str | None, is_text: bool) -> list[dict[str, Any]]:
    calls = [
        {
            "id": ID,
            "type": "function",
            "function": {
                "name": name,
                "arguments": f'{{"{_KEY}": "{number}"}}' if is_text else {_KEY: str(number)},
            },
        }
        for number, name in enumerate((_FIRST, _SECOND)[:count], 1)
    ]
    result = {"role": "tool", "tool_call_id": ID, "name": _FIRST, "content": _RESULT}
    return [
        _USER,
        {"role": "assistant", "content": content, "tool_calls": calls},
        *[result] * count,
    ]


def _read(text: str, count: int, starts: Sequence[str], ends: Sequence[str]) -> CallFormat | None:
    """The format of the calls in a rendered conversation, if it is name, then arguments, each time."""
    position = _answer_start(text, starts)
    if position is None:
        return None
    parts = []
    for name in (_FIRST, _SECOND)[:count]:
        at = text.find(name, position)
        arguments = _ARGUMENTS.search(text, at) if at >= 0 else None
        if arguments is None:
            return None
        parts += [text[position:at], text[at + len(name) : arguments.start()]]
        position = arguments.end()
    opening, middle = parts[:2]
    after = text[position:]
    end = min((after.find(each) for each in ends if each and each in after), default=None)
    # Arguments within further brackets are no JSON: the template writes them in its own way.
    if not middle or middle.endswith("{") or ID in opening:
        return None
    if count == 2 and (end is None or parts[3] != middle):
        return None
    return CallFormat(
        opening=opening,
        middle=middle,
        between=parts[2] if count == 2 else None,
        closing="" if end is None else after[:end],
    )


def _answer_start(text: str, starts: Sequence[str]) -> int | None:
    """Where the first answer in a text begins, by how others do; spaces there count for nothing."""
    for start in sorted(starts, key=len, reverse=True):
        if text.startswith(start):
            return len(start)
        stripped = start.rstrip()
        if text.startswith(stripped):
            return len(text) - len(text[len(stripped) :].lstrip())
    return None


def _rendered(
    template: Template, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False
) -> str | None:
    """What the template makes of a conversation, None if it does not take it; raises TemplateTooSlow."""
    try:
        return template.render(messages, add_generation_prompt=add_generation_prompt, tools=_TOOLS)
    except TemplateTooSlow:
        raise
    except InvalidInput:
        return None
