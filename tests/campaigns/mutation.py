"""Damages files: bytes anywhere, numbers to the edges of their range, and the values of JSON documents.

What comes out depends on the source of chance alone, so that a finding can be made again from its seed.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

EDGES = (0, 1, 2, 31, 127, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf")),
    *("", "\0", "x" * 100_000, "../../../etc/passwd", "/dev/zero", "llama\n", "\ud800", "{{ 1 }}"),
    *([], {}, [[[[]]]], {"auto_map": "evil"}, "__import__('os')", "(a+)+$", "\\p{", -1e-9),
)
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 1000000000 }}",
    "{{ 'a'|center(10000000000) }}",
    "{{ '%999999999d'|format(1) }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ namespace().x.y }}",
    "{{ lipsum(n=100000) }}",
    "{% set x = namespace(a=[1]) %}{% for i in range(9999) %}{% set x.a = x.a + x.a %}{% endfor %}",
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
    "{{ " + "[" * 5000 + "}}",
    "{% if 1 %}" * 200,
    "{{ raise_exception('no') }}",
    "{{ messages | tojson(indent=100000000) }}",
    "{% generation %}",
)


def damage_bytes(content: bytes, chance: random.Random, places: Sequence[int]) -> bytes:
    """One to four changes, each at or shortly behind one of `places`."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = min(chance.choice(places) + chance.randrange(48), len(damaged))
        match chance.randrange(7):
            case 0:
                damaged[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                damaged[at : at + 4] = struct.pack("<I", chance.choice(EDGES) & 0xFFFFFFFF)
            case 2:
                damaged[at : at + 8] = struct.pack("<Q", chance.choice(EDGES))
            case 3:
                del damaged[at : at + chance.randint(1, 64)]
            case 4:
                damaged[at:at] = damaged[at : at + chance.randint(1, 64)]
            case 5:
                damaged[at:at] = chance.randbytes(chance.randint(1, 16))
            case 6 if chance.random() < 0.2:
                del damaged[at:]
    return bytes(damaged)


def damage_json(content: bytes, chance: random.Random) -> bytes:
    """One to three values changed, moved, or gone; sometimes the text itself is damaged."""
    if chance.random() < 0.15:
        return damage_bytes(content, chance, range(len(content)))
    document = json.loads(content)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(document))
        if not places:
            break
        holder, key = chance.choice(places)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other, other_key = chance.choice(places)
                holder[key] = copy.deepcopy(other[other_key])
            case 2 if isinstance(holder[key], str) and holder[key]:
                text, cut = holder[key], chance.randrange(len(holder[key]))
                holder[key] = text[:cut] + chance.choice(("", "\0", "\n", "(?", "é", text))
            case _:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
    return json.dumps(document).encode("utf-8", "surrogatepass")


def damage_template(text: str, chance: random.Random) -> str:
    """Something hostile put somewhere, or a part left away."""
    at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    if chance.random() < 0.3:
        return text[:at] + text[end:]
    return text[:at] + chance.choice(TEMPLATES) + text[at:]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every value of a document, as its holder and its key there."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]
