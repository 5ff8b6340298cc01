"""A JSON Schema without what cannot be kept token by token: it allows more.

For schemas of which nobody was promised that they are kept to the letter.
"""

from __future__ import annotations

from typing import Any

from appliance.engine.json_primitives import FORMATS
from appliance.engine.json_schema import MAX_DEPTH, MAX_REPETITION
from appliance.engine.schema_keywords import kept_keywords, kind_of

NAMED = ("properties", "$defs", "definitions")
ALTERNATIVES = ("anyOf", "oneOf")
# Of texts none is kept: a few long ones would be more than a grammar may have.
TEXT_LENGTHS = ("minLength", "maxLength")
COUNTS = ("minItems", "maxItems")


def loosened(schema: Any, depth: int = 0) -> Any:
    """What is left of a schema; what is no schema at all stays, and is refused where it is read."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return schema
    _, known = kept_keywords(schema, kind_of(schema))
    left = {
        key: _part(schema, key, depth + 1)
        for key, value in schema.items()
        if key in known and _can_be_kept(key, value)
    }
    if len(left) < len(schema) and not left.get("properties"):
        # What was left out may have named the properties that are not "additional".
        left.pop("additionalProperties", None)
    return left


def _part(schema: dict[str, Any], key: str, depth: int) -> Any:
    value = schema[key]
    if key in NAMED and isinstance(value, dict):
        return {name: loosened(each, depth) for name, each in value.items()}
    if key in ALTERNATIVES and isinstance(value, list):
        return [loosened(each, depth) for each in value]
    if key == "required":
        properties = schema.get("properties")
        return [each for each in value if isinstance(properties, dict) and each in properties]
    return loosened(value, depth) if key in ("items", "additionalProperties") else value


def _can_be_kept(key: str, value: Any) -> bool:
    """Whether a keyword that is known can be kept with this value."""
    match key:
        case "format":
            return isinstance(value, str) and value in FORMATS
        case "items":
            return isinstance(value, dict | bool)
        case "required":
            return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if key in COUNTS:
        return type(value) is int and value <= MAX_REPETITION
    return key not in TEXT_LENGTHS
