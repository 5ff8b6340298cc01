"""The rules of an answer's calls, as text; that llama.cpp keeps to them is tested with the model."""

from __future__ import annotations

from appliance.engine.call_format import HERMES, ID, CallFormat
from appliance.engine.call_grammar import calls_grammar
from tests.engine.templates import tools

LIST = CallFormat(
    opening='[{"name": "',
    middle='", "args": ',
    between=f', "id": "{ID}"}}, {{"name": "',
    closing=f', "id": "{ID}"}}]',
)
JSON = CallFormat(opening='{"name": "', middle='", "args": ', between=None, closing="}")


def rules(grammar: str) -> dict[str, str]:
    return dict(line.split(" ::= ") for line in grammar.split("\n"))


def test_each_function_has_its_own_arguments() -> None:
    found = rules(calls_grammar(JSON, tools("f", "g")))
    assert found["calls"] == (
        r'"" ("{\"name\": \"f\", \"args\": " arguments0 | "{\"name\": \"g\", \"args\": " arguments1)'
    )
    assert {"arguments0", "arguments1"} <= found.keys()


def test_function_that_is_named_is_the_only_one() -> None:
    found = rules(calls_grammar(JSON, tools("f", "g", only="g")))
    assert found["calls"] == r'"" ("{\"name\": \"g\", \"args\": " arguments1)'


def test_what_was_said_is_not_said_again_and_leaves_the_functions_that_begin_so() -> None:
    found = rules(calls_grammar(JSON, tools("f", "go"), said='{"name": "g'))
    assert found["calls"] == r'"" ("o\", \"args\": " arguments1)'
    found = rules(calls_grammar(JSON, tools("f"), lead="so\n"))
    assert found["calls"].startswith(r'"so\n" ("{\"name')


def test_several_calls_and_any_ids() -> None:
    found = rules(calls_grammar(LIST, tools("f")))
    identified = r'", \"id\": \"" call-id "\"}'
    assert found["calls"].endswith(f'arguments0) next-call* {identified}]"')
    assert found["next-call"] == (identified + r', {\"name\": \"" ("f\", \"args\": " arguments0)')
    assert found["call-id"] == "[a-zA-Z0-9]{9}"


def test_single_call_ends_with_its_arguments() -> None:
    for grammar in (
        calls_grammar(JSON, tools("f")),
        calls_grammar(HERMES, tools("f", is_parallel=False)),
    ):
        assert rules(grammar)["calls"].endswith("arguments0)")
        assert "next-call" not in grammar
