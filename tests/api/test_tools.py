"""Tools in chat completions: what is offered, what comes back, and what is refused by its place."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import openai
import pytest

from appliance.api.openai.chat_schema import ChatRequest
from appliance.api.openai.messages import conversation
from appliance.engine.protocol import Message
from appliance.engine.tools import ToolCall
from tests.daemon_process import BASE, error_of, ok

USER = {"role": "user", "content": "one two"}
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


WEATHER = tool("get_weather", description="the weather", parameters=PLACE, strict=True)
TIME = tool("get-time")
NAMED = {"type": "function", "function": {"name": "get-time"}}
ROME = '{"city": "Rome"}'
AT_LEAST_1 = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}


def request(**body: Any) -> ChatRequest:
    data = json.dumps({"model": BASE, "messages": [USER], **body})
    return msgspec.json.decode(data, type=ChatRequest)


@pytest.fixture
def client(shared_daemon):
    made = openai.OpenAI(
        base_url=f"{shared_daemon.url}/v1", api_key=shared_daemon.key, max_retries=0, timeout=30
    )
    with made:
        yield made


# --- answers ---


def test_call_has_every_key_of_openais(shared_daemon):
    answer = ok(shared_daemon.chat(f"call {ROME}", tools=[WEATHER, TIME]))
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    calls = choice["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "get_weather", "arguments": ROME},
        {"name": "get-time", "arguments": ROME},
    ]
    assert all(set(call) == {"id", "type", "function"} for call in calls)
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in calls)
    assert calls[0]["id"] != calls[1]["id"]


def test_text_is_an_answer_with_tools_too(shared_daemon):
    (choice,) = ok(shared_daemon.chat("one two", tools=[WEATHER]))["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", f"{BASE}:onetwo")
    assert "tool_calls" not in choice["message"]


def test_stream_tells_the_name_first_and_then_pieces_of_arguments(client):
    chunks = list(
        client.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": f"call {ROME}"}],
            tools=[WEATHER, TIME],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks if chunk.choices]
    first, *pieces, last = deltas
    assert (first, last) == ({"role": "assistant", "content": None}, {})
    calls = [piece["tool_calls"][0] for piece in pieces]
    assert all(set(piece) == {"tool_calls"} for piece in pieces)
    for index, name in enumerate(("get_weather", "get-time")):
        named, *others = [call for call in calls if call["index"] == index]
        assert named.pop("id").startswith("call_")
        assert named == {
            "index": index,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        assert "".join(each["function"]["arguments"] for each in others) == ROME
        assert all(set(each) == {"index", "function"} for each in others)
        assert len(others) == 2
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]
    assert chunks[-1].usage.completion_tokens == 6


def test_clients_own_helper_puts_the_stream_together(client):
    messages = [{"role": "user", "content": f"call {ROME}"}]
    with client.chat.completions.stream(model=BASE, messages=messages, tools=[WEATHER]) as events:
        named = [each.name for each in events if each.type.startswith("tool_calls.function")]
        done = events.get_final_completion()
    assert set(named) == {"get_weather"}
    message = done.choices[0].message
    assert (message.content, done.choices[0].finish_reason) == (None, "tool_calls")
    assert message.tool_calls[0].function.arguments == ROME


def test_arguments_that_are_cut_are_given_as_far_as_they_came(shared_daemon):
    (choice,) = ok(shared_daemon.chat(f"call {ROME}", tools=[WEATHER], max_tokens=2))["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == ROME[: len(ROME) // 2]


def test_each_of_several_answers_has_calls_with_ids_of_their_own(client):
    options = {"model": BASE, "tools": [WEATHER], "n": 2, "logprobs": True}
    messages = [{"role": "user", "content": f"call {ROME}"}]
    answer = client.chat.completions.create(messages=messages, **options)
    calls = [choice.message.tool_calls[0] for choice in answer.choices]
    assert len({call.id for call in calls}) == 2
    assert [each.token for each in answer.choices[0].logprobs.content] == [
        "",
        ROME[: len(ROME) // 2],
        ROME[len(ROME) // 2 :],
    ]
    ids, arguments, tokens = {}, {}, []
    for chunk in client.chat.completions.create(messages=messages, stream=True, **options):
        for choice in chunk.choices:
            tokens += choice.logprobs.content if choice.logprobs else []
            for call in choice.delta.tool_calls or []:
                ids.setdefault(choice.index, call.id)
                said = arguments.get(choice.index, "")
                arguments[choice.index] = said + call.function.arguments
    assert len(set(ids.values())) == 2
    assert arguments == {0: ROME, 1: ROME}
    assert len(tokens) == 6


# --- what is offered ---


def test_choice_says_what_may_and_what_must_be_called():
    def offered(choice: Any = None, **body: Any) -> Any:
        return request(tools=[WEATHER, TIME], tool_choice=choice, **body).offered()

    free = offered("auto")
    assert (free.must_call, free.is_parallel) == (False, True)
    assert list(free.callable()) == ["get_weather", "get-time"]
    assert offered() == free
    assert offered("none") is None
    assert offered("required").must_call
    assert offered(NAMED).must_call
    assert offered(NAMED).callable() == {"get-time": "arguments1"}
    assert not offered(NAMED).is_parallel
    assert not offered(parallel_tool_calls=False).is_parallel
    assert request(tools=[]).offered() is None


def test_functions_go_to_the_engine_with_rules_for_their_arguments():
    offered = request(tools=[WEATHER, TIME]).offered()
    weather, time = offered.functions
    assert (weather.name, weather.description) == ("get_weather", "the weather")
    assert json.loads(weather.parameters) == PLACE
    assert json.loads(time.parameters)["properties"] == {}
    rules = dict(line.split(" ::= ") for line in offered.grammar.split("\n"))
    assert rules["arguments0"] != rules["arguments1"] == '"{}"'


def test_what_cannot_be_kept_is_told_to_the_model_all_the_same():
    offered = request(tools=[tool("f", parameters=AT_LEAST_1)]).offered()
    (function,) = offered.functions
    assert json.loads(function.parameters) == AT_LEAST_1
    assert "integer" in offered.grammar.split("arguments0 ::= ")[0]


def test_number_that_fits_into_no_machine_word_is_no_fault():
    huge = {"type": "object", "properties": {"n": {"type": "integer", "default": 10**30}}}
    (function,) = request(tools=[tool("f", parameters=huge)]).offered().functions
    assert json.loads(function.parameters)["properties"]["n"]["default"] >= 10**30


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
        ({"tools": [tool(f"f{n}") for n in range(129)]}, "tools"),
        ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", parameters={"type": "array"})]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", parameters={"anyOf": [PLACE]})]}, "tools[0].function.parameters"),
        (
            {"tools": [TIME, tool("f", strict=True, parameters=AT_LEAST_1)]},
            "tools[1].function.parameters.properties.n.minimum",
        ),
        (
            {"tools": [tool("f", parameters={"properties": {"n": {"type": "x"}}})]},
            "tools[0].function.parameters.properties.n.type",
        ),
        # What is wrong with a tool is told even if nothing may be called.
        (
            {
                "tools": [tool("f", parameters={"properties": {"n": {"enum": []}}})],
                "tool_choice": "none",
            },
            "tools[0]",
        ),
        ({"tools": "f"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice.type",
        ),
        ({"tools": [WEATHER], "parallel_tool_calls": "x"}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_tools_that_cannot_be_are_refused_by_their_place(shared_daemon, body, place):
    error = error_of(shared_daemon.chat("one", **body), 400)
    assert place.partition("[")[0] in error["param"]
    assert place in f"{error['param']} {error['message']}"


def test_deep_schema_is_refused_and_breaks_nothing(shared_daemon):
    deep: Any = {}
    for _ in range(300):
        deep = {"default": deep}
    for schema in (deep, {"type": "object", "default": deep}):
        answer = shared_daemon.chat("one", tools=[tool("f", parameters=schema)])
        assert answer.status_code in (200, 400)
    assert ok(shared_daemon.chat("one two"))


def test_limits_hold_for_all_tools_together(shared_daemon):
    wide = {"properties": {f"p{n}": {"enum": ["a", "b"]} for n in range(90)}}
    ok(shared_daemon.chat("one", tools=[tool("f", parameters=wide)]))
    many = [tool(f"f{n}", parameters=wide) for n in range(20)]
    assert "values" in error_of(shared_daemon.chat("one", tools=many), 400)["message"]


# --- conversations ---


def called(call_id: str = "c1", arguments: str = ROME) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def result(call_id: str = "c1", content: Any = "sun") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_calls_and_results_go_to_the_engine():
    assistant = {"role": "assistant", "tool_calls": [called()], "refusal": None, "content": None}
    parts = [{"type": "text", "text": "su"}, {"type": "text", "text": "n"}]
    messages = request(messages=[USER, assistant, result(content=parts)]).messages
    call = ToolCall(id="c1", name="get_weather", arguments=ROME)
    assert conversation(messages)[1:] == [
        Message(role="assistant", content="", tool_calls=[call]),
        Message(role="tool", content="sun", tool_call_id="c1", name="get_weather"),
    ]


def test_call_without_arguments_has_an_empty_object():
    assistant = {"role": "assistant", "tool_calls": [called(arguments="")]}
    _, message = conversation(request(messages=[USER, assistant]).messages)
    assert message.tool_calls[0].arguments == "{}"


def test_conversation_with_a_call_is_answered_without_tools_too(shared_daemon):
    assistant = {"role": "assistant", "tool_calls": [called()]}
    messages = [USER, assistant, result(), USER]
    assert ok(shared_daemon.chat("", messages=messages))["choices"]


ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [called()]}


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([USER, result()], "messages[1].tool_call_id"),
        ([USER, ASSISTANT, result("c2")], "messages[2].tool_call_id"),
        ([USER, result(), ASSISTANT], "messages[1].tool_call_id"),
        ([USER, ASSISTANT, {"role": "tool", "content": "sun"}], "messages[2].tool_call_id"),
        ([USER, ASSISTANT, result(content=None)], "messages[2].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([USER, {"role": "assistant", "content": None}], "messages[1].content"),
        ([USER, {"role": "assistant", "tool_calls": []}], "messages[1].content"),
        ([{**USER, "tool_calls": [called()]}], "messages[0].tool_calls"),
        ([USER, {**ASSISTANT, "tool_calls": [{**called(), "type": "custom"}]}], "tool_calls[0]"),
        *(
            (
                [USER, {**ASSISTANT, "tool_calls": [called(arguments=arguments)]}],
                "messages[1].tool_calls[0].function.arguments",
            )
            for arguments in ("{", "[]", '"a"', "{} {}", "[" * 100_000)
        ),
        ([USER, {**ASSISTANT, "tool_calls": [called()] * 129}], "tool_calls"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[0].role"),
    ],
)
def test_message_that_makes_no_sense_is_refused_by_its_place(shared_daemon, messages, place):
    error = error_of(shared_daemon.chat("", messages=messages), 400)
    assert place in error["param"]
