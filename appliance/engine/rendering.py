"""`python -m appliance.engine.rendering FD`: the process in which an engine's chat template runs.

It is told the template, then one conversation after the other. Imports neither torch nor llama.cpp.
"""

from __future__ import annotations

import resource
import socket
import sys
from typing import BinaryIO, TypeVar

import msgspec

from appliance import process
from appliance.engine import protocol
from appliance.engine.renderer import Render, Reply, Source, frame
from appliance.errors import ApplianceError
from appliance.prompts import ChatTemplate

# Of addresses: the interpreter itself takes a fifth, and no prompt may be larger than 8 MiB.
MEMORY_BYTES = 512 << 20

T = TypeVar("T")


def main() -> None:
    """Answer until the connection ends."""
    process.die_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    stream = connection.makefile("rb")
    told = _read(stream, Source)
    if told is None:
        return
    try:
        template = ChatTemplate(told.template, bos_token=told.bos_token, eos_token=told.eos_token)
    except ApplianceError as exc:
        connection.sendall(_refusal(exc))
        return
    connection.sendall(frame(Reply()))
    while (request := _read(stream, Render)) is not None:
        connection.sendall(_answer(template, request))


def _answer(template: ChatTemplate, request: Render) -> bytes:
    try:
        text = template.render(
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            tools=request.tools,
        )
        answer = frame(Reply(text=text))
        # The other side takes no longer ones.
        protocol.body_length(answer[: protocol.HEADER_BYTES])
    except ApplianceError as exc:
        return _refusal(exc)
    return answer


def _refusal(error: ApplianceError) -> bytes:
    return frame(Reply(code=error.code, message=error.message))


def _read(stream: BinaryIO, kind: type[T]) -> T | None:
    """The next message, None at the end of the connection."""
    header = stream.read(protocol.HEADER_BYTES)
    if len(header) < protocol.HEADER_BYTES:
        return None
    body = stream.read(int.from_bytes(header, "big"))
    return msgspec.json.decode(body, type=kind)


if __name__ == "__main__":
    main()
