"""Calls are told from text, however the bytes of an answer are cut into pieces."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.engine.call_format import HERMES, CallFormat, detect
from appliance.engine.call_stream import CallStream
from appliance.prompts import ChatTemplate
from tests.engine import templates
from tests.engine.templates import ENDS, tools

LLAMA = detect(ChatTemplate(templates.LLAMA), ENDS)
MISTRAL = detect(ChatTemplate(templates.MISTRAL), ENDS)
FENCED = detect(ChatTemplate(templates.FENCED), ENDS)

TRICKY = r'{"a": "}\"]{ é\\", "b": [{"c": "<tool_call>"}, {}]}'
ONE = '<tool_call>\n{"name": "f", "arguments": ' + TRICKY + "}\n</tool_call>"
TWO = ONE + '\n<tool_call>\n{"name": "fg", "arguments": {}}\n</tool_call>'


class Read:
    """What became of an answer that came in pieces of so many bytes."""

    def __init__(
        self, answer: str, size: int, form: CallFormat, cut: bool = False, **options: Any
    ) -> None:
        offered = tools("f", "fg", **options.pop("tools", {}))
        self.stream = CallStream(form, offered, **options)
        data, text = answer.encode(), b""
        for start in range(0, len(data), size):
            text += self.stream.feed(data[start : start + size])
        self.text = (text + self.stream.finish(cut=cut)).decode()
        pieces = self.stream.take_pieces()
        self.calls = [
            (
                "".join(each.name or "" for each in pieces if each.index == index),
                "".join(each.arguments for each in pieces if each.index == index),
            )
            for index in range(self.stream.count)
        ]


sizes = pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])


@sizes
def test_calls_and_the_text_before_them(size: int) -> None:
    read = Read("Let me see.\n\n" + TWO, size, HERMES)
    assert read.text == "Let me see."
    assert read.calls == [("f", TRICKY), ("fg", "{}")]


@sizes
@pytest.mark.parametrize(
    "text", ["hello", "a < b <tool", "<tool_calls>", "<tool_ call>", " \n", "é😀<", '{"name": "f"']
)
def test_text_that_is_no_call_stays_whole(text: str, size: int) -> None:
    read = Read(text, size, HERMES)
    assert (read.text, read.calls) == (text, [])


def test_text_is_held_back_only_while_it_may_be_a_call() -> None:
    stream = CallStream(HERMES, tools("f"))
    assert [stream.feed(each) for each in (b"a <", b"tool_c", b"row>", b" b")] == [
        b"a",
        b"",
        b" <tool_crow>",
        b" b",
    ]


@sizes
def test_list_with_ids(size: int) -> None:
    answer = (
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcDEF123"}, '
        '{"name": "fg", "arguments": {}, "id": "000000000"}]'
    )
    assert Read(answer, size, MISTRAL).calls == [("f", '{"a": 1}'), ("fg", "{}")]


@sizes
def test_fences(size: int) -> None:
    answer = (
        "<calls><call>function<sep>f\n```json\n{}\n```</call>\n"
        '<call>function<sep>fg\n```json\n{"a": "```"}\n```</call></calls>'
    )
    assert Read(answer, size, FENCED).calls == [("f", "{}"), ("fg", '{"a": "```"}')]


@sizes
def test_json_alone_is_a_call_where_the_answer_begins_with_it(size: int) -> None:
    call = '{"name": "fg", "parameters": {"a": {}}'
    read = Read("\n" + call, size, LLAMA)
    assert (read.text, read.calls) == ("", [("fg", '{"a": {}}')])
    assert read.stream.complete
    for text in ("so: " + call, '{"name": "h", "parameters": {}}', '{"name":', "  "):
        read = Read(text, size, LLAMA)
        assert (read.text, read.calls) == (text, [])


@sizes
def test_answer_that_begins_in_the_prompt(size: int) -> None:
    must = {"must_call": True}
    read = Read('fg", "arguments": {"a": 1}}\n</tool_call>', size, HERMES, tools=must)
    assert read.stream.said == HERMES.opening
    assert read.calls == [("fg", '{"a": 1}')]
    named = {"must_call": True, "only": "f", "is_parallel": False}
    read = Read(' {"a": 1}', size, HERMES, tools=named)
    assert (read.calls, read.stream.complete) == ([("f", '{"a": 1}')], True)


def test_one_call_is_complete_with_its_arguments_several_are_not() -> None:
    assert Read(ONE[: -len("}\n</tool_call>")], 1, HERMES, tools={"is_parallel": False}).calls
    assert Read(ONE, 1, HERMES, tools={"is_parallel": False}).stream.complete
    assert not Read(ONE, 1, HERMES).stream.complete


@sizes
def test_what_was_cut_is_given_as_far_as_it_came(size: int) -> None:
    read = Read(ONE[:60], size, HERMES, cut=True)
    assert (read.text, read.calls) == ("", [("f", TRICKY[: 60 - ONE.index(TRICKY)])])
    read = Read(ONE[:20], size, HERMES, cut=True)
    assert (read.text, read.calls) == ("", [])
    read = Read("so <tool", size, HERMES, cut=True)
    assert (read.text, read.calls) == ("so <tool", [])


@sizes
def test_schema_of_the_answer_may_look_like_a_call(size: int) -> None:
    answer = '{"name": "f", "age": 3}'
    assert Read(answer, size, LLAMA).text == answer
    inside = '{"a": "<tool_call>"}'
    assert Read(inside, size, HERMES, only_at_start=True).text == inside


def test_beginning_of_a_call_is_told_before_it_is_taken() -> None:
    stream = CallStream(HERMES, tools("f"))
    assert stream.begins_with(b"a<tool_call>\n") == ("", "a")
    assert stream.begins_with(b"<tool_cal") is None
    stream.feed("é <tool_".encode())
    assert stream.begins_with(b"call>\n{") == ("<tool_", "")
    assert stream.begins_with(b"call") is None
    # Half of a character cannot be said before a call.
    stream = CallStream(HERMES, tools("f"))
    stream.feed("é".encode()[:1])
    assert stream.begins_with("é".encode()[1:] + b"<tool_call>") is None
    stream.feed("é".encode()[1:] + b"<tool_call>")
    assert not stream.begun
