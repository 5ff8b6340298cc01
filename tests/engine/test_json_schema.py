"""A schema becomes a grammar of what it allows, or is refused by the place that cannot be kept."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance.engine.json_primitives import PRIMITIVES
from appliance.engine.json_schema import MAX_DEPTH, to_gbnf
from appliance.errors import InvalidInput

PET = {
    "type": "object",
    "title": "Pet",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "description": "years"}},
    "required": ["name"],
}


def rules(schema: Any) -> dict[str, str]:
    """Those of a schema's own, and its root."""
    lines = [line.split(" ::= ") for line in to_gbnf(schema, "schema").split("\n")]
    return {name: rule for name, rule in lines if name not in PRIMITIVES}


def refusal(schema: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        to_gbnf(schema, "schema")
    assert caught.value.param == "schema"
    return caught.value


def test_every_rule_that_is_named_is_there() -> None:
    grammar = to_gbnf({"type": "array", "items": {"anyOf": [PET, {"$ref": "#"}]}}, "schema")
    defined = {line.split(" ::= ")[0] for line in grammar.split("\n")}
    texts = re.sub(r'"(\\.|[^"\\])*"|\[(\\.|[^\]\\])*\]|\{[0-9,]*\}', " ", grammar)
    named = set(re.findall(r"[a-z][a-z0-9]*", texts))
    assert len(named) > 15
    assert named - defined == set()


@pytest.mark.parametrize("schema", [{}, True, {"description": "anything"}])
def test_anything_is_any_json(schema: Any) -> None:
    assert rules(schema) == {"root": "value"}


def test_properties_keep_their_order_and_optional_ones_may_be_missing() -> None:
    found = rules(PET)
    assert found["root"] == "r4"
    assert found["r4"] == '"{" r2 "}"'
    assert found["r2"] == r'"\"name\"" ":" ws string r1'
    assert found["r1"] == r'("," ws "\"age\"" ":" ws integer)? ""'


def test_constants_stand_letter_by_letter() -> None:
    found = rules({"enum": ['a"b\\', "é\n", 1.5, None, {"k": [1]}]})
    assert found["r0"] == (r'"\"a\\\"b\\\\\"" | "\"é\\n\"" | "1.5" | "null" | "{\"k\":[1]}"')
    assert rules({"const": True}) == {"root": '"true"'}


def test_lengths_are_counted() -> None:
    assert rules({"type": "string", "minLength": 2, "maxLength": 5})["r0"] == (
        r'"\"" char{2,5} "\""'
    )
    array = {"type": "array", "items": {"type": "null"}}
    assert rules({**array, "maxItems": 0}) == {"root": '"[]"'}
    assert rules({**array, "minItems": 2, "maxItems": 3})["r0"] == '"[" null ("," ws null){1,2} "]"'
    assert rules({**array, "maxItems": 3})["r0"] == '"[" (null ("," ws null){0,2})? "]"'


def test_references_may_go_round() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/a~1b"}}}
    found = rules({"$ref": "#/$defs/a~1b", "$defs": {"a/b": node}})
    assert found["root"] == "r0"
    assert "r0" in found["r1"]


def test_objects_without_named_properties_are_maps() -> None:
    found = rules({"type": "object", "additionalProperties": {"type": "integer"}})
    assert found["r0"] == 'string ":" ws integer'
    assert rules({"type": "object", "additionalProperties": False}) == {"root": '"{}"'}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "integer", "minimum": 3}, "schema.minimum"),
        ({"type": "string", "pattern": "^a$"}, "schema.pattern"),
        ({"allOf": [PET]}, "schema.allOf"),
        ({"not": {}}, "schema.not"),
        (
            {"properties": {"a": {"items": {"multipleOf": 2}}}},
            "schema.properties.a.items.multipleOf",
        ),
        (
            {"anyOf": [{}, {"type": "string", "contentEncoding": "x"}]},
            "schema.anyOf[1].contentEncoding",
        ),
        ({"enum": [1], "minLength": 2}, "schema.minLength"),
        ({"type": ["string", "null"], "maxLength": 2}, "schema.maxLength"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"uniqueItems": True}}},
            "schema.$defs.a.uniqueItems",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_place(schema: Any, place: str) -> None:
    error = refusal(schema)
    assert error.code == "unsupported_schema"
    assert error.message.startswith(f"{place} ")


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (1, "schema"),
        ([], "schema"),
        (False, "schema"),
        ({"type": "text"}, "schema.type"),
        ({"type": {}}, "schema.type"),
        ({"type": []}, "schema.type"),
        ({"type": ["string", "x"]}, "schema.type[1].type"),
        ({"enum": []}, "schema.enum"),
        ({"enum": "a"}, "schema.enum"),
        ({"anyOf": [1]}, "schema.anyOf[0]"),
        ({"$ref": "https://example.com/a"}, "schema.$ref"),
        ({"$ref": "#/$defs/none"}, "schema.$ref"),
        ({"$ref": ["#"]}, "schema.$ref"),
        ({"$ref": "#a"}, "schema.$ref"),
        ({"properties": []}, "schema.properties"),
        ({"properties": {"a": {}}, "required": ["b"]}, "schema.required"),
        ({"properties": {"a": {}}, "required": [{}]}, "schema.required"),
        ({"properties": {"a": {}}, "required": "a"}, "schema.required"),
        ({"type": "string", "format": "email"}, "schema.format"),
        ({"type": "string", "format": []}, "schema.format"),
        ({"type": "string", "format": "date", "maxLength": 3}, "schema.format"),
        ({"type": "string", "maxLength": -1}, "schema.maxLength"),
        ({"type": "string", "maxLength": 1001}, "schema.maxLength"),
        ({"type": "string", "minLength": 1.5}, "schema.minLength"),
        ({"type": "array", "minItems": True}, "schema.minItems"),
        ({"type": "array", "minItems": None}, "schema.minItems"),
        ({"type": "string", "maxLength": None}, "schema.maxLength"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "schema.minItems"),
    ],
)
def test_what_is_no_schema_is_refused_by_its_place(schema: Any, place: str) -> None:
    error = refusal(schema)
    assert error.code == "invalid_schema"
    assert error.message.startswith(f"{place} should ")


def test_size_is_bounded() -> None:
    deep: Any = {}
    for _ in range(MAX_DEPTH + 2):
        deep = {"type": "array", "items": deep}
    assert "nest at most" in refusal(deep).message
    wide = {"properties": {f"p{n}": {} for n in range(1500)}}
    assert "rules" in refusal(wide).message
    assert "characters" in refusal({"enum": ["x" * 300_000]}).message


def doubling(levels: int, ways: int) -> Any:
    """Definitions of which each is one of several like the next."""
    definitions: dict[str, Any] = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * ways} for n in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "null"}}}


LIST = {"type": "array", "minItems": 1, "items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("schema", "limit"),
    [
        (doubling(28, 4), "ways"),
        ({"anyOf": [LIST, {**LIST, "maxItems": 9}]}, "ways open at once"),
        ({"anyOf": [{"type": "object"}] * 65}, "ways open at once"),
        ({"type": "array", "items": {"enum": list(range(1001))}}, "values"),
        ({"properties": {f"p{n}": {"enum": [n] * 20} for n in range(60)}}, "values"),
        (
            {"properties": {f"p{n}": {"type": "string", "maxLength": 900} for n in range(6)}},
            "lengths",
        ),
        (
            {"properties": {f"p{n}": {"type": "array", "maxItems": 900} for n in range(6)}},
            "lengths",
        ),
    ],
)
def test_what_would_keep_the_engine_busy_is_refused(schema: Any, limit: str) -> None:
    assert limit in refusal(schema).message


def test_alternatives_of_objects_are_ordinary() -> None:
    kinds = [
        {"type": "object", "properties": {"kind": {"const": kind}, "next": {"$ref": "#"}}}
        for kind in ("a", "b")
    ]
    assert rules({"anyOf": [kinds[0], {"type": "null"}]})
    assert rules(
        {"type": "array", "items": {"anyOf": [{**each, "properties": {}} for each in kinds]}}
    )
    # Beginning alike and holding one another, they would double with every level.
    assert "ways open at once" in refusal({"anyOf": kinds}).message


def test_more_than_can_be_kept_is_refused_before_it_is_looked_at() -> None:
    names = [f"p{number}" for number in range(90_000)]
    # What is wrong within would be told first, were it looked at.
    unknown = {"no such keyword": 1}
    many = refusal({"properties": dict.fromkeys(names, unknown), "required": names})
    assert "schema.properties should be at most 2000" in many.message
    assert "found 90000" in many.message
    assert "found 80000" in refusal({"anyOf": [unknown] * 80_000}).message


def test_long_name_is_not_told_in_full() -> None:
    schema = {"properties": {"n" * 100_000: {"type": "no such type"}}}
    assert len(refusal(schema).message) < 500
    assert len(refusal({"x" * 100_000: 1}).message) < 1000
