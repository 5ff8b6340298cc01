"""What JSON itself is made of, in llama.cpp's GBNF, and a text as it writes one. Knows nothing of schemas."""

from __future__ import annotations

# RFC 8259, without what a reader may choke on: halves of surrogate pairs, numbers beyond a double.
PRIMITIVES = {
    "ws": '" "?',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" code)',
    "code": "[0-9a-cA-CefEF] hex hex hex | [dD] [0-7] hex hex",
    "hex": "[0-9a-fA-F]",
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" (member ("," ws member)*)? "}"',
    "member": 'string ":" ws value',
    "array": '"[" (value ("," ws value)*)? "]"',
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? zone',
    "zone": '"Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]',
}
NOTHING = '""'
ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
FORMATS = {
    "date": "date",
    "time": "time",
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}


def literal(text: str) -> str:
    """A text that must stand there, letter by letter."""
    return '"' + "".join(ESCAPES.get(each, each) for each in text) + '"'


def times(least: int, most: int | None) -> str:
    """How often what stands before it may come."""
    return f"{{{least},{'' if most is None else most}}}"
