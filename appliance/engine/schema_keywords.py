"""Which keywords of JSON Schema can be kept token by token, and beside which others."""

from __future__ import annotations

from typing import Any

ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    **{kind: set() for kind in ("integer", "number", "boolean", "null")},
}
# By themselves: beside them only annotations make sense, and a type.
CHOICES = {"enum", "const", "anyOf", "oneOf", "$ref"}


def kind_of(schema: dict[str, Any]) -> str | None:
    """The one type that a schema names, or that its keywords speak of."""
    named = schema.get("type")
    if named is None:
        return next((kind for kind, keys in KEYWORDS.items() if keys & schema.keys()), None)
    return named if isinstance(named, str) else None


def kept_keywords(schema: dict[str, Any], kind: str | None) -> tuple[str | None, set[str]]:
    """The keyword that makes a schema of this type a choice, if one does, and all that can be kept in it."""
    choice = next((key for key in schema if key in CHOICES), None)
    own = {choice} if choice else KEYWORDS.get(kind or "", set())
    return choice, ANNOTATIONS | {"type"} | own
