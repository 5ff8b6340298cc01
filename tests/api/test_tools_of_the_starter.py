"""Tools with the real starter model, through the official client: its arguments are always valid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.children import starter_gguf
from tests.daemon_process import BASE, RealDaemon, add_base

__all__ = ["starter_gguf"]

pytestmark = [pytest.mark.slow, pytest.mark.llama]


def tool(name: str, description: str, properties: Any, required: list[str]) -> Any:
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = tool(
    "get_weather",
    "Get the weather of a city",
    {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    ["city", "unit"],
)
ORDER = tool(
    "order",
    "Order items",
    {
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"sku": {"type": "integer"}, "gift": {"type": "boolean"}},
                "required": ["sku", "gift"],
            },
        }
    },
    ["items"],
)
NOW = {"type": "function", "function": {"name": "now"}}


def is_weather(arguments: Any) -> bool:
    return (
        list(arguments) == ["city", "unit"]
        and isinstance(arguments["city"], str)
        and arguments["unit"] in ("celsius", "fahrenheit")
    )


def is_order(arguments: Any) -> bool:
    items = arguments["items"]
    return (
        list(arguments) == ["items"]
        and 1 <= len(items) <= 2
        and all(list(each) == ["sku", "gift"] for each in items)
        and all(type(each["sku"]) is int and type(each["gift"]) is bool for each in items)
    )


VALID: dict[str, Callable[[Any], bool]] = {
    "get_weather": is_weather,
    "order": is_order,
    "now": lambda arguments: arguments == {},
}
TOOLS = [WEATHER, ORDER, NOW]


@pytest.fixture(scope="module")
def client(starter_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    state_dir = tmp_path_factory.mktemp("tools") / "state"
    add_base(state_dir, real_gguf=starter_gguf)
    # Two threads would wait for each other by spinning when something else wants the CPUs.
    daemon = RealDaemon(state_dir, threads=1)
    try:
        daemon.start()
        with openai.OpenAI(
            base_url=f"{daemon.url}/v1", api_key=daemon.key, max_retries=0, timeout=120
        ) as made:
            yield made
    finally:
        daemon.close()


def ask(client: openai.OpenAI, messages: Any, stream: bool = False, **options: Any) -> Any:
    """The first choice, put together by the client if it is streamed."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    options = {"model": BASE, "messages": messages, "max_tokens": 90, **options}
    if not stream:
        return client.chat.completions.create(**options).choices[0]
    with client.chat.completions.stream(**options) as events:
        for _ in events:
            pass
        return events.get_final_completion().choices[0]


def check_calls(choice: Any) -> list[str]:
    """The functions that were called, each with valid arguments."""
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert VALID[call.function.name](json.loads(call.function.arguments)), call
    return [call.function.name for call in choice.message.tool_calls]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", VALID)
def test_function_that_is_named_is_called(client, name, stream):
    choice = {"type": "function", "function": {"name": name}}
    answer = ask(client, "Tell me a joke.", stream, tools=TOOLS, tool_choice=choice, seed=1)
    assert check_calls(answer) == [name]
    assert answer.message.content is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 2])
def test_required_call_is_made_however_little_the_model_wants_it(client, temperature, stream):
    answers = [
        ask(
            client,
            "Write a poem.",
            stream,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=temperature,
            seed=seed,
        )
        for seed in range(2)
    ]
    for answer in answers:
        assert len(check_calls(answer)) == 1


def test_several_calls_are_told_apart(client):
    # Without the end of its turn the model calls on.
    answer = ask(
        client,
        "Call now.",
        tools=[NOW],
        tool_choice="required",
        logit_bias={"2": -100},
        max_tokens=60,
        temperature=0,
    )
    assert answer.finish_reason == "length"
    calls = answer.message.tool_calls
    assert len(calls) > 1
    assert all(call.function.name == "now" for call in calls)
    assert all(call.function.arguments == "{}" for call in calls[:-1])
    assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize("question", ["What is 2+2?", "What is the weather in Rome in celsius?"])
def test_free_choice_gives_a_text_or_a_valid_call(client, question):
    for seed in range(2):
        answer = ask(client, question, tools=TOOLS, tool_choice="auto", seed=seed, max_tokens=60)
        if answer.message.tool_calls and answer.finish_reason != "length":
            check_calls(answer)
        else:
            assert answer.message.content


SAYS_SO = "Repeat exactly this line and nothing else: <tool_call>"


def test_call_that_the_model_begins_by_itself_is_valid(client):
    # The model is led to the opening; the rest it would not write by itself.
    messages = [{"role": "user", "content": SAYS_SO}]
    for stream in (False, True):
        answer = ask(client, messages, stream, tools=[WEATHER], temperature=0)
        assert check_calls(answer)


def test_no_call_where_none_is_wanted(client):
    answer = ask(client, SAYS_SO, tools=[WEATHER], tool_choice="none", temperature=0)
    assert answer.message.tool_calls is None
    assert answer.message.content


def test_schema_of_the_answer_holds_where_nothing_is_called(client):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for seed in range(2):
        answer = ask(client, "Is it so?", tools=TOOLS, response_format=response_format, seed=seed)
        if answer.message.tool_calls:
            check_calls(answer)
        else:
            assert list(json.loads(answer.message.content)) == ["a"]


def test_conversation_goes_on_with_the_result_of_a_call(client):
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    called = ask(client, messages, tools=[WEATHER], tool_choice=choice, temperature=0).message
    messages.append(called.to_dict())
    (call,) = called.tool_calls
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny, 31 degrees"})
    answer = ask(client, messages, tools=[WEATHER], tool_choice="none", temperature=0)
    assert answer.finish_reason in ("stop", "length")
    assert "31" in answer.message.content or "sunny" in answer.message.content
