"""`messages` of a chat completion: what apps send becomes what the engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.api.openai.tools import MAX_TOOLS, MessageToolCall
from appliance.engine.protocol import Message
from appliance.engine.tools import ToolCall
from appliance.errors import UNDECODABLE, InvalidInput

_arguments_decoder = msgspec.json.Decoder(dict[str, Any])


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message of a request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        """The content's parts as one text."""
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """As the engine takes it; raises InvalidInput naming a message that makes no sense where it stands."""
    called: dict[str, str] = {}
    return [
        _plain(message, f"messages[{number}]", called) for number, message in enumerate(messages)
    ]


def _plain(message: ChatMessage, path: str, called: dict[str, str]) -> Message:
    """`called` are the ids of earlier calls with their functions' names; the message's own are added."""
    calls = message.tool_calls or []
    if calls and message.role != "assistant":
        raise _invalid(f"{path}.tool_calls", "be the assistant's", f"them in one of {message.role}")
    if message.content is None and not calls:
        raise _invalid(f"{path}.content", "be a text", "none")
    if message.role == "tool":
        if message.tool_call_id not in called:
            raise _invalid(
                f"{path}.tool_call_id",
                "be the id of a call in an assistant's message before it",
                repr(message.tool_call_id)[:80],
            )
        name = called[message.tool_call_id]
        return Message(
            role="tool", content=message.text(), tool_call_id=message.tool_call_id, name=name
        )
    called |= {call.id: call.function.name for call in calls}
    return Message(
        # OpenAI's newer name for the system role; templates know the older one.
        role="system" if message.role == "developer" else message.role,
        content=message.text(),
        tool_calls=[_call(call, f"{path}.tool_calls[{n}]") for n, call in enumerate(calls)],
    )


def _call(call: MessageToolCall, path: str) -> ToolCall:
    # Some clients send nothing for no arguments.
    arguments = call.function.arguments.strip() or "{}"
    try:
        _arguments_decoder.decode(arguments)
    except UNDECODABLE as exc:
        raise _invalid(
            f"{path}.function.arguments", "be a JSON object", str(exc)[:80] or "none"
        ) from exc
    return ToolCall(id=call.id, name=call.function.name, arguments=arguments)


def _invalid(path: str, expected: str, found: str) -> InvalidInput:
    return InvalidInput("invalid_value", f"{path} should {expected}; found {found}", param=path)
