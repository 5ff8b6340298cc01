"""A JSON Schema without what cannot be kept token by token: it allows more.

For schemas of which nobody was promised that they are kept to the letter.
"""

from __future__ import annotations

from typing import Any

from appliance.engine.json_primitives import FORMATS
from appliance.engine.json_schema import MAX_DEPTH, MAX_REPETITION
from appliance.engine.schema_keywords import kept_keywords, kind_of

NAMED = ("properties", "$defs", "definitions")
SINGLE = ("items", "additionalProperties")
ALTERNATIVES = ("anyOf", "oneOf")
LENGTHS = ("minLength", "maxLength", "minItems", "maxItems")


def loosened(schema: Any, depth: int = 0) -> Any:
    """What is left of a schema; what is no schema at all stays, and is refused where it is read."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return schema
    _, known = kept_keywords(schema, kind_of(schema))
    return {
        key: _part(key, value, depth + 1)
        for key, value in schema.items()
        if key in known and not _asks_too_much(schema, key)
    }


def _part(key: str, value: Any, depth: int) -> Any:
    if key in NAMED and isinstance(value, dict):
        return {name: loosened(each, depth) for name, each in value.items()}
    if key in ALTERNATIVES and isinstance(value, list):
        return [loosened(each, depth) for each in value]
    return loosened(value, depth) if key in SINGLE else value


def _asks_too_much(schema: dict[str, Any], key: str) -> bool:
    """Whether a keyword is known, but not with this value, or not beside the others."""
    value = schema[key]
    if key == "format":
        named = isinstance(value, str) and value in FORMATS
        return not named or bool(schema.keys() & set(LENGTHS))
    return key in LENGTHS and isinstance(value, int) and value > MAX_REPETITION
