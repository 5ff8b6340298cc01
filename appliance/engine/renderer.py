"""A chat template in a process of its own, with limits of time and memory: templates are foreign code.

Jinja's sandbox keeps a template from the machine, not from the clock. What takes too long is killed, and
the next conversation gets a new process. Knows nothing of tokens.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance import process
from appliance.engine import protocol
from appliance.errors import UNDECODABLE, ChildFailed, InvalidInput

# A long conversation takes some hundredths of a second.
LIMIT_SECONDS = 2.0
# Until a fresh interpreter has compiled the template, on a device that is busy.
START_SECONDS = 20.0
_CHUNK_BYTES = 1 << 16


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told first."""

    template: str
    bos_token: str
    eos_token: str


class Render(msgspec.Struct, frozen=True, kw_only=True):
    """As `ChatTemplate.render` takes it."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    tools: list[dict[str, Any]] | None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A text, or the code and message of why there is none."""

    text: str = ""
    code: str | None = None
    message: str = ""


class TemplateTooSlow(InvalidInput):
    """A template that took longer than it may, and was ended."""


class RendererDied(ChildFailed):
    """Its process ended in the middle of its work."""


class Renderer:
    """Renders as `ChatTemplate` does. Any thread may call it; they wait for one another."""

    def __init__(
        self, template: str, *, bos_token: str, eos_token: str, limit_seconds: float = LIMIT_SECONDS
    ) -> None:
        """Raises InvalidInput for a template that does not compile, ChildFailed if that takes too long."""
        self._source = Source(template=template, bos_token=bos_token, eos_token=eos_token)
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._program: tuple[process.Program, socket.socket] | None = None
        try:
            self._connection()
        except BaseException:
            self.close()
            raise

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation; raises InvalidInput if the template refuses it or takes too long."""
        request = Render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None if tools is None else [dict(tool) for tool in tools],
        )
        with self._lock:
            try:
                return self._ask(self._connection(), request, self._limit_seconds)
            except RendererDied:
                # Somebody may have killed it for want of memory; a second time it is the conversation.
                return self._ask(self._connection(), request, self._limit_seconds)

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        if self._program is not None:
            program, connection = self._program
            self._program = None
            connection.close()
            program.kill()
            program.wait()

    def _connection(self) -> socket.socket:
        """To the process, which is started if there is none."""
        if self._program is not None and self._program[0].poll() is not None:
            self.close()
        if self._program is None:
            ours, theirs = socket.socketpair()
            with theirs:
                argv = process.python_child("appliance.engine.rendering", str(theirs.fileno()))
                try:
                    program = process.start_in_group(argv, pass_fds=(theirs.fileno(),))
                except BaseException:
                    ours.close()
                    raise
            self._program = (program, ours)
            try:
                self._ask(ours, self._source, START_SECONDS)
            except TemplateTooSlow as exc:
                raise ChildFailed(
                    "renderer_stalled",
                    f"the chat template should be compiled within {START_SECONDS:g} s; it was not",
                    next_step="try again; see what else keeps the device busy",
                ) from exc
        return self._program[1]

    def _ask(
        self, connection: socket.socket, request: Source | Render, limit_seconds: float
    ) -> str:
        data = frame(request)
        try:
            reply = _exchange(connection, data, limit_seconds)
        except TimeoutError:
            self.close()
            raise TemplateTooSlow(
                "template_too_slow",
                f"the model's chat template should take at most {limit_seconds:g} s; it took longer",
                param="messages",
                next_step="send a shorter conversation",
            ) from None
        except (ConnectionError, EOFError, *UNDECODABLE) as exc:
            self.close()
            raise RendererDied(
                "renderer_died",
                "the chat template's process should answer; it ended",
                next_step="try again; see the engine's last lines in the log",
            ) from exc
        except BaseException:
            # Half of an exchange would answer the next question.
            self.close()
            raise
        if reply.code is not None:
            raise InvalidInput(reply.code, reply.message, param="messages")
        return reply.text


def _exchange(connection: socket.socket, data: bytes, limit_seconds: float) -> Reply:
    """Send a request and wait for its reply; raises TimeoutError, EOFError or ConnectionError."""
    deadline = time.monotonic() + limit_seconds
    connection.settimeout(limit_seconds)
    connection.sendall(data)
    header = _receive(connection, protocol.HEADER_BYTES, deadline)
    body = _receive(connection, protocol.body_length(header), deadline)
    return msgspec.json.decode(body, type=Reply)


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(min(count - len(data), _CHUNK_BYTES))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def frame(message: msgspec.Struct) -> bytes:
    """The length of a message and the message; raises InvalidInput for text that is not Unicode."""
    try:
        # Not msgpack, which has no numbers beyond 64 bits: a tool's schema may.
        body = msgspec.json.encode(message)
    except UnicodeEncodeError as exc:
        raise InvalidInput(
            "invalid_text", f"text should be valid Unicode, but: {exc.reason}", param="messages"
        ) from exc
    return len(body).to_bytes(protocol.HEADER_BYTES, "big") + body
