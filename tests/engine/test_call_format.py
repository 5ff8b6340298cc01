"""How a model writes a call is read off its own template, or is Hermes' way."""

from __future__ import annotations

import pytest

from appliance.engine.call_format import HERMES, ID, CallFormat, detect
from appliance.prompts import ChatTemplate
from tests.engine import templates
from tests.engine.templates import ENDS, tools

AS_HERMES = {"opening": HERMES.opening, "middle": HERMES.middle, "closing": HERMES.closing}


def found(source: str) -> CallFormat:
    return detect(ChatTemplate(source), ENDS)


@pytest.mark.parametrize("source", [templates.HERMES, templates.THOUGHTFUL])
def test_tags_around_json(source: str) -> None:
    assert found(source) == CallFormat(**AS_HERMES, between=HERMES.between)
    assert found(source).marker == "<tool_call>"


def test_json_alone_and_one_call_a_turn() -> None:
    form = found(templates.LLAMA)
    assert form == CallFormat(
        opening='{"name": "', middle='", "parameters": ', between=None, closing="}"
    )
    assert form.marker == ""
    assert form.triggers(["f", "g"]) == ['{"name": "f"', '{"name": "g"']


def test_a_list_with_ids() -> None:
    form = found(templates.MISTRAL)
    assert form == CallFormat(
        opening='[TOOL_CALLS] [{"name": "',
        middle='", "arguments": ',
        between=f', "id": "{ID}"}}, {{"name": "',
        closing=f', "id": "{ID}"}}]',
    )
    assert form.triggers(["f"]) == ["[TOOL_CALLS]"]


def test_arguments_as_text_without_a_content() -> None:
    form = found(templates.FENCED)
    assert form == CallFormat(
        opening="<calls><call>function<sep>",
        middle="\n```json\n",
        between="\n```</call>\n<call>function<sep>",
        closing="\n```</call></calls>",
        arguments_are_text=True,
    )
    assert form.marker == "<calls><call>function<sep>"


@pytest.mark.parametrize("source", [templates.PLAIN, templates.TAGGED, "{{ tools }}", "no"])
def test_what_knows_no_tools_or_writes_no_json_gets_hermes_way(source: str) -> None:
    assert found(source) == HERMES


def test_thoughts_that_the_prompt_opens_are_not_part_of_a_call() -> None:
    form = found(templates.OPENS_THOUGHTS)
    assert form == CallFormat(**AS_HERMES, between=HERMES.between, unsaid="<think>\n")
    plain = templates.PLAIN.replace("assistant\n{%", "assistant\n<think>\n{%")
    assert found(plain).unsaid == "<think>\n"
    closed = templates.PLAIN.replace("assistant\n{%", "assistant\n<think></think>{%")
    assert found(closed).unsaid == ""


def test_template_that_takes_no_calls_is_no_failure() -> None:
    refusing = templates.HERMES.replace("{%- for call", "{{ raise_exception('x') }}{%- for call")
    assert not found(refusing).is_native


def test_answer_that_has_to_call_begins_as_far_as_it_is_certain() -> None:
    assert HERMES.begun(tools("f", "g")) == '<tool_call>\n{"name": "'
    assert HERMES.begun(tools("f")) == '<tool_call>\n{"name": "f", "arguments":'
    assert HERMES.begun(tools("f", "g", only="g")) == '<tool_call>\n{"name": "g", "arguments":'


@pytest.mark.parametrize(
    ("opening", "marker"),
    [("<f=", "<f="), ("[", ""), ('[{"name": "', ""), ("Action: ", ""), (' <|c|>{"n": "', "<|c|>")],
)
def test_only_what_no_text_has_marks_a_call(opening: str, marker: str) -> None:
    form = CallFormat(opening=opening, middle=">", between=None, closing="")
    assert form.marker == marker
