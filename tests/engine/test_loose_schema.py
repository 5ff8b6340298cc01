"""A schema that nobody asked to be kept to the letter loses what cannot be kept, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.engine.json_schema import MAX_DEPTH, to_gbnf
from appliance.engine.loose_schema import loosened
from appliance.errors import InvalidInput

KEPT = {
    "type": "object",
    "title": "Order",
    "properties": {
        "minimum": {"type": "string"},
        "day": {"type": "string", "format": "date"},
        "kind": {"enum": [{"pattern": "a"}, 1]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 3},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["minimum"],
    "additionalProperties": False,
    "$defs": {"part": {"type": "integer"}},
}


def test_schema_that_can_be_kept_stays_as_it_is() -> None:
    assert loosened(KEPT) == KEPT


@pytest.mark.parametrize(
    ("schema", "left"),
    [
        ({"type": "integer", "minimum": 1, "multipleOf": 2}, {"type": "integer"}),
        ({"type": "string", "pattern": "^a$"}, {"type": "string"}),
        ({"type": "string", "format": "email"}, {"type": "string"}),
        ({"type": "string", "format": {}}, {"type": "string"}),
        (
            {"type": "string", "format": "date", "maxLength": 9},
            {"type": "string", "format": "date"},
        ),
        ({"type": "string", "minLength": None, "maxLength": 1001}, {"type": "string"}),
        ({"minItems": 1.0, "maxItems": 1001, "items": [{}]}, {}),
        (
            {"properties": {"a": {}}, "required": ["a", "b"]},
            {"properties": {"a": {}}, "required": ["a"]},
        ),
        ({"required": ["b"]}, {"required": []}),
        ({"required": None, "additionalProperties": False}, {}),
        (
            {"patternProperties": {"x": {}}, "additionalProperties": False, "type": "object"},
            {"type": "object"},
        ),
        ({"type": ["string", "null"], "maxLength": 2}, {"type": ["string", "null"]}),
        ({"enum": [1, 2], "minimum": 1}, {"enum": [1, 2]}),
        ({"not": {}}, {}),
        (
            {"properties": {"a": {"items": {"uniqueItems": True, "minItems": 1}}}},
            {"properties": {"a": {"items": {"minItems": 1}}}},
        ),
        ({"additionalProperties": {"minimum": 1}}, {"additionalProperties": {}}),
        (
            {"type": "object", "additionalProperties": False},
            {"type": "object", "additionalProperties": False},
        ),
        (
            {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "number", "maximum": 1}}},
            {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "number"}}},
        ),
    ],
)
def test_what_cannot_be_kept_is_left_out(schema: Any, left: Any) -> None:
    assert loosened(schema) == left
    to_gbnf(left, "schema")


@pytest.mark.parametrize(
    "schema",
    [
        1,
        {"type": "text"},
        {"enum": []},
        {"properties": []},
        {"properties": 5, "required": ["a"]},
        {"$ref": "https://example.com/a"},
    ],
)
def test_what_is_no_schema_is_still_refused(schema: Any) -> None:
    with pytest.raises(InvalidInput):
        to_gbnf(loosened(schema), "schema")


def test_schema_that_nests_too_deeply_is_still_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(InvalidInput, match=f"nest at most {MAX_DEPTH} levels"):
        to_gbnf(loosened(deep), "schema")
