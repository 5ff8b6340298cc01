"""From a JSON Schema to the grammar of the JSON texts that it allows, in llama.cpp's GBNF.

Supports what can be kept token by token: types, enums, constants, alternatives, references within the
schema, objects, arrays and texts with their lengths, dates and UUIDs. A keyword that would restrict an
answer and cannot be kept is refused, by its path. Answers are compact: at most one space after a comma or
a colon; a property that is not named is never written.

Source of GBNF: llama.cpp, grammars/README.md. Knows nothing of llama.cpp's library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from appliance.engine.json_primitives import FORMATS, NOTHING, PRIMITIVES, literal, times
from appliance.engine.schema_keywords import ANNOTATIONS, KEYWORDS, kept_keywords, kind_of
from appliance.errors import InvalidInput

MAX_DEPTH = 64
MAX_RULES = 2000
MAX_SHOWN_CHARACTERS = 300
MAX_GRAMMAR_CHARACTERS = 256 * 1024
# llama.cpp writes a repetition out, and takes no longer one; it holds all values of an enumeration at once.
MAX_REPETITION = 1000
MAX_REPETITIONS_TOGETHER = 5000
MAX_VALUES_TOGETHER = 1000
# Alternatives that begin alike are all followed at once, and what they hold is multiplied by their number.
MAX_AT_ONCE = 64
# llama.cpp goes through every way in which a rule can begin, to see whether it begins with itself.
MAX_BEGINNINGS = 1000


def to_gbnf(schema: Any, path: str) -> str:
    """The grammar of a schema that stands at `path` in a request; raises InvalidInput naming the place."""
    return to_rules({"root": (schema, path)}, "r")


def to_rules(schemas: Mapping[str, tuple[Any, str]], prefix: str) -> str:
    """A rule of its name for each schema at its path; all together they have the limits of one."""
    converter = _Converter(prefix)
    roots = {name: converter.convert(*schema) for name, schema in schemas.items()}
    rules = {**PRIMITIVES, **converter.rules, **roots}
    grammar = "\n".join(f"{name} ::= {rule}" for name, rule in rules.items())
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        limit = f"make a grammar of at most {MAX_GRAMMAR_CHARACTERS} characters"
        raise _invalid(next(iter(schemas.values()))[1], limit, "more")
    return grammar


class _Converter:
    """Walks through schemas; `rules` are those beside the primitives."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        # How many ways to begin a rule has, where there are several.
        self._beginnings: dict[str, int] = {}
        self._at_once = 1
        self._repetitions = self._values = 0
        self.rules: dict[str, str] = {}

    def convert(self, document: Any, path: str) -> str:
        """An expression for a whole schema: references are to its own parts."""
        self._document, self._path = document, path
        self._references: dict[tuple[str, int], str] = {}
        return self.visit(document, path, 0)

    def visit(self, schema: Any, path: str, depth: int) -> str:
        """An expression for what a schema allows; safe to stand in a sequence."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise _invalid(path, "be an object", json.dumps(schema)[:40])
        if depth > MAX_DEPTH:
            raise _invalid(path, f"nest at most {MAX_DEPTH} levels", "more")
        kind = self._kind(schema, path)
        choice, known = kept_keywords(schema, kind)
        for key in schema:
            if key not in known:
                raise InvalidInput(
                    "unsupported_schema",
                    f"{_shown(f'{path}.{key}')} cannot be kept here, or not beside what else is there",
                    param=_field(path),
                    next_step=f"leave it out; supported: {', '.join(sorted(known - ANNOTATIONS))}",
                )
        if choice is not None:
            return self._choice(choice, schema[choice], f"{path}.{choice}", depth)
        if isinstance(schema.get("type"), list):
            kinds = [{"type": each} for each in schema["type"]]
            return self._alternatives(kinds, f"{path}.type", depth)
        if kind is None:
            return "value"
        build = {"object": self._object, "array": self._array, "string": self._string}.get(kind)
        return build(schema, path, depth) if build else kind

    def _kind(self, schema: dict[str, Any], path: str) -> str | None:
        """The type that a schema names, or that its keywords speak of."""
        named = schema.get("type")
        if isinstance(named, list):
            return None
        if named is not None and (not isinstance(named, str) or named not in KEYWORDS):
            raise _invalid(
                f"{path}.type", f"be one of {', '.join(KEYWORDS)}", json.dumps(named)[:40]
            )
        return kind_of(schema)

    def _choice(self, key: str, value: Any, path: str, depth: int) -> str:
        if key == "const":
            return _literal(value)
        if key == "$ref":
            return self._reference(value, path, depth)
        if key == "enum" and isinstance(value, list) and value:
            self._values += len(value)
            if self._values > MAX_VALUES_TOGETHER:
                raise _invalid(
                    path, f"have at most {MAX_VALUES_TOGETHER} values, all together", "more"
                )
            return self._rule(" | ".join(dict.fromkeys(map(_literal, value))))
        return self._alternatives(value, path, depth)

    def _alternatives(self, schemas: Any, path: str, depth: int) -> str:
        if not isinstance(schemas, list) or not schemas:
            raise _invalid(path, "be a list of at least one", json.dumps(schemas)[:40])
        if len(schemas) > MAX_BEGINNINGS:
            raise _invalid(path, f"be at most {MAX_BEGINNINGS}", str(len(schemas)))
        before, self._at_once = self._at_once, self._at_once * self._alike(schemas, path)
        if self._at_once > MAX_AT_ONCE:
            raise _invalid(path, f"leave at most {MAX_AT_ONCE} ways open at once", "more")
        found = [self.visit(each, f"{path}[{n}]", depth + 1) for n, each in enumerate(schemas)]
        self._at_once = before
        rule = self._rule(" | ".join(dict.fromkeys(found)))
        self._beginnings[rule] = sum(self._beginnings.get(each, 1) for each in found)
        if self._beginnings[rule] > MAX_BEGINNINGS:
            raise _invalid(path, f"begin in at most {MAX_BEGINNINGS} ways", "more")
        return rule

    def _reference(self, pointer: Any, path: str, depth: int) -> str:
        target = self._target(pointer, path)
        # Where it is one of more ways it is counted anew.
        key = (pointer, self._at_once)
        if key not in self._references:
            # Named before it is visited: it may speak of itself.
            name = self._references[key] = f"{self._prefix}{len(self.rules)}"
            self.rules[name] = NOTHING
            place = f"{self._path}{str(pointer)[1:].replace('/', '.')}"
            self.rules[name] = rule = self.visit(target, place, depth + 1)
            self._beginnings[name] = self._beginnings.get(rule, 1)
        return self._references[key]

    def _alike(self, schemas: list[Any], path: str) -> int:
        """How many of some alternatives can be under way at once: those that begin with the same bracket."""
        kinds = [self._bracket(each, path) for each in schemas]
        return max(1, *(kinds.count(kind) + kinds.count("any") for kind in ("object", "array")))

    def _bracket(self, schema: Any, path: str) -> str:
        """What a text begins with: "object", "array", "neither", or, if that takes a closer look, "any"."""
        if isinstance(schema, dict) and "$ref" in schema:
            schema = self._target(schema["$ref"], path)
        if not isinstance(schema, dict) or not schema or {"$ref", "anyOf", "oneOf"} & schema.keys():
            return "any"
        if {"enum", "const"} & schema.keys():
            return "neither"
        kind = schema.get("type")
        for bracket in ("object", "array"):
            if kind == bracket or (kind is None and KEYWORDS[bracket] & schema.keys()):
                return bracket
        return "neither" if isinstance(kind, str) else "any"

    def _target(self, pointer: Any, path: str) -> Any:
        """RFC 6901, within the schema: nothing is ever fetched."""
        if not isinstance(pointer, str) or not re.fullmatch(r"#(/.*)?", pointer):
            raise _invalid(
                path, 'begin with "#": a reference within the schema', repr(pointer)[:60]
            )
        target = self._document
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                raise _invalid(path, "name a part of the schema", repr(pointer)[:60])
            target = target[key]
        return target

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise _invalid(f"{path}.properties", "be an object", json.dumps(properties)[:40])
        if len(properties) > MAX_RULES:
            limit = f"be at most {MAX_RULES}, each with a rule at least"
            raise _invalid(f"{path}.properties", limit, str(len(properties)))
        if not isinstance(required, list) or not all(
            isinstance(each, str) and each in properties for each in required
        ):
            raise _invalid(f"{path}.required", "name properties", json.dumps(required)[:60])
        names = set(required)
        others = schema.get("additionalProperties", True)
        if not properties:
            if others is False:
                return '"{}"'
            value = self.visit(others, f"{path}.additionalProperties", depth + 1)
            member = self._rule(f'string ":" ws {value}')
            return self._rule(f'"{{" ({member} ("," ws {member})*)? "}}"')
        members = [
            (
                f'{_literal(name)} ":" ws {self.visit(each, f"{path}.properties.{name}", depth + 1)}',
                name in names,
            )
            for name, each in properties.items()
        ]
        return self._rule(f'"{{" {self._members(members)} "}}"')

    def _members(self, members: list[tuple[str, bool]]) -> str:
        """In their order, the required ones always, with commas between those that are there."""
        # From the last to the first: what may follow one that is there, and what may stand where none is yet.
        following = first = NOTHING
        for member, is_required in reversed(members):
            if is_required:
                first = self._rule(f"{member} {following}")
                following = self._rule(f'"," ws {member} {following}')
            else:
                first = self._rule(f"{member} {following} | {first}")
                following = self._rule(f'("," ws {member})? {following}')
        return first

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> str:
        least, most = _bounds(schema, path, "minItems", "maxItems")
        if most == 0:
            return '"[]"'
        item = self.visit(schema.get("items", True), f"{path}.items", depth + 1)
        self._count(max(least, most or 0), path)
        more = f'("," ws {item}){times(max(least - 1, 0), None if most is None else most - 1)}'
        some = f"{item} {more}"
        return self._rule(f'"[" {some if least else f"({some})?"} "]"')

    def _string(self, schema: dict[str, Any], path: str, _depth: int) -> str:
        least, most = _bounds(schema, path, "minLength", "maxLength")
        if "format" in schema:
            named = schema["format"]
            if not isinstance(named, str) or named not in FORMATS or least or most is not None:
                names = ", ".join(FORMATS)
                raise _invalid(
                    f"{path}.format", f"be one of {names}, without lengths", repr(schema["format"])
                )
            return self._rule(rf'"\"" {FORMATS[named]} "\""')
        if not least and most is None:
            return "string"
        self._count(max(least, most or 0), path)
        return self._rule(rf'"\"" char{times(least, most)} "\""')

    def _count(self, repetitions: int, path: str) -> None:
        self._repetitions += repetitions
        if self._repetitions > MAX_REPETITIONS_TOGETHER:
            limit = f"have lengths of at most {MAX_REPETITIONS_TOGETHER}, all together"
            raise _invalid(path, limit, "more")

    def _rule(self, expression: str) -> str:
        """A new rule; returns its name."""
        if len(self.rules) >= MAX_RULES:
            raise _invalid(self._path, f"need at most {MAX_RULES} rules", "more")
        name = f"{self._prefix}{len(self.rules)}"
        self.rules[name] = expression
        return name


def _bounds(schema: dict[str, Any], path: str, low: str, high: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high, MAX_REPETITION)
    for key, value in ((low, least), (high, most)):
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if not (is_count and 0 <= value <= MAX_REPETITION):
            raise _invalid(
                f"{path}.{key}", f"be from 0 to {MAX_REPETITION}", json.dumps(value)[:40]
            )
    if least > most:
        raise _invalid(f"{path}.{low}", f"be at most {high}, {most}", str(least))
    return least, most if high in schema else None


def _literal(value: Any) -> str:
    """A JSON value as text that must stand there, letter by letter."""
    return literal(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _invalid(path: str, expected: str, found: str) -> InvalidInput:
    message = f"{_shown(path)} should {expected}; found {found}"
    return InvalidInput("invalid_schema", message, param=_field(path))


def _shown(path: str) -> str:
    """Names of properties may be as long as a request."""
    return path if len(path) <= MAX_SHOWN_CHARACTERS else path[:MAX_SHOWN_CHARACTERS] + "…"


def _field(path: str) -> str:
    """The request's field in which a path begins."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]
