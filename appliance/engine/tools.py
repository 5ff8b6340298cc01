"""What the daemon and the engine say of tools: the functions on offer, and calls in an answer.

Schemas and arguments travel as JSON texts: a number in one may be larger than msgpack takes.
Knows nothing of how a model writes a call.
"""

from __future__ import annotations

import msgspec

# The rule of `Tools.grammar` that says which arguments the function with this number takes.
ARGUMENTS_RULE = "arguments"


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the assistant has made; `arguments` is a JSON object."""

    id: str
    name: str
    arguments: str


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that may be called; `parameters` is a JSON Schema."""

    name: str
    description: str
    parameters: str


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer may or must call.

    `grammar`, in llama.cpp's GBNF, has a rule for the arguments of each function: "arguments0",
    "arguments1" … With `only` no other function than the one of that name is called.
    """

    functions: list[Function]
    grammar: str
    must_call: bool = False
    only: str | None = None
    is_parallel: bool = True
    """Whether there may be several calls."""

    def callable(self) -> dict[str, str]:
        """The names of the functions that may be called, each with its rule in the grammar."""
        return {
            each.name: f"{ARGUMENTS_RULE}{number}"
            for number, each in enumerate(self.functions)
            if self.only in (None, each.name)
        }


class CallPiece(msgspec.Struct, frozen=True, kw_only=True):
    """The next piece of the answer's call number `index`: its name, which comes first, or arguments."""

    index: int
    name: str | None = None
    arguments: str = ""
