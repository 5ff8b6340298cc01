"""From messages and tools to the text that a model is given. Knows nothing of tokens.

What users wrote, descriptions of tools, arguments and results among it, has marks in place of control tokens.
Where the chat template does not know tools, the system message describes them, and calls and results are
text in Hermes' format.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from appliance.control_text import ControlText
from appliance.engine import call_format
from appliance.engine.protocol import Message
from appliance.engine.tools import ToolCall, Tools
from appliance.prompts import Template

INTRODUCTION = """\
# Tools

You may call one or more of these functions to help with the request:
<tools>
{functions}
</tools>

To call a function, answer with its name and arguments in these tags:
<tool_call>
{{"name": <function name>, "arguments": <JSON object of arguments>}}
</tool_call>"""
RESULT = "<tool_response>\n{content}\n</tool_response>"

Turn = dict[str, Any]


class Conversations:
    """Renders conversations with one model's template; `calls` is how the model writes a call."""

    def __init__(self, template: Template, control: ControlText, ends: Sequence[str]) -> None:
        """`ends` are the texts of the tokens that end an answer."""
        self._template = template
        self._control = control
        self.calls = call_format.detect(template, ends)

    def render(self, messages: Sequence[Message], tools: Tools | None = None) -> str:
        """The text up to where the answer begins, or, if it has to call, goes on; raises InvalidInput."""
        functions = None if tools is None else self._functions(tools)
        ids: dict[str, str] = {}
        turns = [self._turn(message, ids) for message in messages]
        if not self.calls.is_native:
            turns = list(_in_plain_words(turns, functions))
            functions = None
        text = self._template.render(turns, add_generation_prompt=True, tools=functions)
        if tools is not None and tools.must_call:
            text = text.removesuffix(self.calls.unsaid) + self.calls.begun(tools)
        return text

    def _functions(self, tools: Tools) -> list[Turn]:
        return [
            {
                "type": "function",
                "function": {
                    "name": self._control.hide(each.name),
                    "description": self._control.hide(each.description),
                    "parameters": self._hidden(msgspec.json.decode(each.parameters)),
                },
            }
            for each in tools.functions
        ]

    def _turn(self, message: Message, ids: dict[str, str]) -> Turn:
        content = self._control.hide(message.content)
        turn: Turn = {"role": message.role, "content": content}
        if message.tool_calls:
            # Templates ask whether the key is there.
            turn["tool_calls"] = [self._call(call, ids) for call in message.tool_calls]
            turn["content"] = content or self.calls.empty_content
        if message.role == "tool":
            turn["tool_call_id"] = ids.get(message.tool_call_id or "", call_format.ID)
            turn["name"] = self._control.hide(message.name or "")
        return turn

    def _call(self, call: ToolCall, ids: dict[str, str]) -> Turn:
        # Some templates take no other ids than these.
        name = f"call{len(ids):0{call_format.ID_CHARACTERS - 4}}"
        arguments = self._hidden(msgspec.json.decode(call.arguments))
        if self.calls.arguments_are_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {
            "id": ids.setdefault(call.id, name),
            "type": "function",
            "function": {"name": self._control.hide(call.name), "arguments": arguments},
        }

    def _hidden(self, value: Any) -> Any:
        """A JSON value with all its texts hidden, names of properties too."""
        if isinstance(value, str):
            return self._control.hide(value)
        if isinstance(value, list):
            return [self._hidden(each) for each in value]
        if isinstance(value, dict):
            return {self._control.hide(key): self._hidden(each) for key, each in value.items()}
        return value


def _in_plain_words(turns: Sequence[Turn], functions: list[Turn] | None) -> Iterator[Turn]:
    """The same turns, and a description of the functions, for a template that knows no tools."""
    if functions is not None:
        said = INTRODUCTION.format(functions="\n".join(map(_as_json, functions)))
        if turns and turns[0]["role"] == "system":
            said, turns = f"{turns[0]['content']}\n\n{said}", turns[1:]
        yield {"role": "system", "content": said}
    for is_result, group in itertools.groupby(turns, lambda turn: turn["role"] == "tool"):
        if is_result:
            # Templates want one turn of a user's between two answers.
            results = [RESULT.format(content=turn["content"]) for turn in group]
            yield {"role": "user", "content": "\n".join(results)}
        else:
            yield from map(_with_calls_as_text, group)


def _with_calls_as_text(turn: Turn) -> Turn:
    if "tool_calls" not in turn:
        return turn
    form = call_format.HERMES
    calls = [
        form.opening
        + call["function"]["name"]
        + form.middle
        + _as_json(call["function"]["arguments"])
        + form.closing
        for call in turn["tool_calls"]
    ]
    said = [turn["content"]] if turn["content"] else []
    return {"role": turn["role"], "content": "\n".join(said + calls)}


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
