"""`tools` and `tool_choice` of a chat completion, and the calls of an answer."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.engine import tools as engine_tools
from appliance.engine.json_schema import to_rules
from appliance.engine.loose_schema import loosened
from appliance.engine.schema_keywords import CHOICES
from appliance.engine.tools import ARGUMENTS_RULE, CallPiece, Tools
from appliance.errors import InvalidInput
from appliance.store.rows import new_id

MAX_TOOLS = 128
FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}\\Z")]
NO_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


class FunctionDefinition(msgspec.Struct, kw_only=True):
    """`tools[].function`. What a grammar cannot keep of its parameters is refused only with `strict`."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """`tools[]`: functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, kw_only=True):
    """`tool_choice.function`."""

    name: FunctionName


class NamedChoice(msgspec.Struct, kw_only=True):
    """`tool_choice` that names a function; lists of allowed tools are not supported."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


class CalledFunction(msgspec.Struct, kw_only=True):
    """`tool_calls[].function`."""

    name: FunctionName
    arguments: str


class MessageToolCall(msgspec.Struct, kw_only=True):
    """`tool_calls[]` of a message, asked or answered."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    type: Literal["function"]
    function: CalledFunction


def offered(
    tools: list[Tool] | None, choice: ToolChoice | None, is_parallel: bool | None
) -> Tools | None:
    """What the engine may or must call, None for nothing; raises InvalidInput naming the place at fault."""
    names = [tool.function.name for tool in tools or []]
    only = choice.function.name if isinstance(choice, NamedChoice) else None
    if only is not None and only not in names:
        raise InvalidInput(
            "invalid_value",
            f"tool_choice.function.name should be one of tools; found {only!r}",
            param="tool_choice",
        )
    if choice == "required" and not names:
        raise InvalidInput(
            "invalid_value",
            'tool_choice "required" should come with tools; there are none',
            param="tool_choice",
        )
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InvalidInput(
                "invalid_value",
                f"tools[{number}].function.name should differ from others; found {name!r} twice",
                param="tools",
            )
    if not tools:
        return None
    schemas = [_schema(tool, number) for number, tool in enumerate(tools)]
    functions = [
        _function(tool, schema, number)
        for number, (tool, schema) in enumerate(zip(tools, schemas, strict=True))
    ]
    # What is wrong with a tool is told even if it is not used.
    grammar = to_rules(
        {
            f"{ARGUMENTS_RULE}{number}": (
                schema if tool.function.strict else loosened(schema),
                _path(number),
            )
            for number, (tool, schema) in enumerate(zip(tools, schemas, strict=True))
        },
        "a",
    )
    if choice == "none":
        return None
    return Tools(
        functions=functions,
        grammar=grammar,
        must_call=choice == "required" or only is not None,
        only=only,
        # Who names a function wants one call of it.
        is_parallel=is_parallel is not False and only is None,
    )


def _path(number: int) -> str:
    return f"tools[{number}].function.parameters"


def _schema(tool: Tool, number: int) -> dict[str, Any]:
    """The schema of the arguments, which are an object whether or not it says so."""
    given = tool.function.parameters
    if given is None:
        return NO_PARAMETERS
    if given.get("type", "object") != "object" or CHOICES & given.keys():
        found = json.dumps(given.get("type", sorted(CHOICES & given.keys())))[:60]
        raise InvalidInput(
            "invalid_schema",
            f'{_path(number)} should have "type": "object", and properties; found {found}',
            param="tools",
        )
    return {**given, "type": "object"}


def _function(tool: Tool, schema: dict[str, Any], number: int) -> engine_tools.Function:
    try:
        parameters = msgspec.json.encode(schema).decode()
    except RecursionError as exc:
        raise InvalidInput(
            "invalid_schema",
            f"{_path(number)} should not nest hundreds of levels deep; it does",
            param="tools",
        ) from exc
    return engine_tools.Function(
        name=tool.function.name,
        description=tool.function.description or "",
        parameters=parameters,
    )


class AnsweredCalls:
    """The calls of one answer, in OpenAI's form, as they come."""

    def __init__(self) -> None:
        self._calls: list[MessageToolCall] = []

    def add(self, piece: CallPiece) -> dict[str, Any]:
        """Take a piece; returns what a stream says of it."""
        if piece.name is not None:
            function = CalledFunction(name=piece.name, arguments="")
            call = MessageToolCall(id=new_id("call_"), type="function", function=function)
            self._calls.append(call)
            return {"index": piece.index, **msgspec.to_builtins(call)}
        self._calls[piece.index].function.arguments += piece.arguments
        return {"index": piece.index, "function": {"arguments": piece.arguments}}

    def whole(self) -> list[MessageToolCall] | msgspec.UnsetType:
        """All of them; where there are none, OpenAI leaves out the key."""
        return self._calls or msgspec.UNSET
