"""The daemon's side of an engine: start it, ask it, notice its death. Free of torch and llama.cpp.

One task reads every reply and never waits for whoever reads an answer: a slow one delays no other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from appliance import process
from appliance.engine import protocol
from appliance.engine.answer import Answer
from appliance.engine.ending import died, error_of, see_end, stalled, stopped
from appliance.engine.environment import environment
from appliance.engine.protocol import Delta, Failed, Finished, Loaded, Prompt, Reply, Sampling
from appliance.engine.tools import Tools
from appliance.errors import UNDECODABLE, ChildFailed, TooLarge

logger = logging.getLogger(__name__)

PROGRAM = tuple(process.python_child("appliance.engine"))


class Engine:
    """A running engine with a loaded model, owned by the event loop that started it."""

    def __init__(
        self,
        child: process.Child,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        loaded: Loaded,
        stall_seconds: float,
    ) -> None:
        self.loaded = loaded
        self.load = protocol.Load(running=0, waiting=0, cells=0)
        """What the engine was doing when it said so last."""
        self._stall_seconds = stall_seconds
        self._heard_at = time.monotonic()
        self._child = child
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(protocol.LOADING_ID + 1)
        self._answers: dict[int, Answer] = {}
        self.answered = 0
        """How many answers it has finished."""
        self.last_words = ""
        """How it ended; empty until it has."""
        self._stopping = False
        self._has_stalled = False
        self._receiver = asyncio.create_task(self._receive(), name=f"replies of {child.name}")
        self._watch = asyncio.create_task(self._stop_if_stalled(), name=f"watch of {child.name}")

    @property
    def alive(self) -> bool:
        """Whether a request has a chance."""
        ends = self._stopping or self._has_stalled or self._receiver.done()
        return not ends and self._child.returncode is None

    @property
    def pending(self) -> int:
        """Requests that wait or are being answered."""
        return len(self._answers)

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self._child.pid

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Have `tell` called by the event loop once the engine has ended, however that came."""
        self._receiver.add_done_callback(lambda _: tell())

    async def wait(self) -> None:
        """Return when it has ended, and everybody who waits for it has been told."""
        await asyncio.shield(self._receiver)

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        tools: Tools | None = None,
        *,
        adapter: Path | None = None,
        client: str = "",
    ) -> AsyncGenerator[Delta | Finished, None]:
        """Answer a prompt: pieces of text, then of calls, then how it ended; with an adapter if one is given.

        Those who wait take turns by `client`. Leaving early cancels the request; use `contextlib.aclosing`,
        so that it does so at once. Raises InvalidInput or TooLarge for a request that cannot be answered,
        SlowClient when too much lies unread, ChildFailed when the engine failed ("engine_died",
        "engine_stopped", "engine_stalled", "decode_failed").
        """
        if self.last_words:
            raise self._ended()
        request = protocol.Generate(
            id=next(self._ids),
            prompt=prompt,
            sampling=sampling,
            tools=tools,
            adapter=None if adapter is None else str(adapter),
            client=client,
        )
        if not self._owes_an_answer:
            self._heard_at = time.monotonic()
        answer = self._answers[request.id] = Answer(request.id)
        try:
            await self._send(request)
            while not isinstance(piece := await answer.read(), Finished):
                yield piece
            # Whoever has the end may never come back for more.
            self._forget(request.id)
            yield piece
        finally:
            self._forget(request.id)

    async def stop(self) -> None:
        """End the process; requests that are still pending fail with "engine_stopped"."""
        self._stopping = True
        await self._child.stop()
        await asyncio.shield(self._receiver)

    @property
    def _owes_an_answer(self) -> bool:
        return any(not each.ended for each in self._answers.values())

    async def _stop_if_stalled(self) -> None:
        """End an engine that owes answers and says nothing. One for all: a timer a token costs more."""
        left = self._stall_seconds
        while left > 0:
            await asyncio.sleep(left)
            now = time.monotonic()
            left = (self._heard_at if self._owes_an_answer else now) + self._stall_seconds - now
        self._has_stalled = True
        await self._child.stop()
        self._tell_all()

    # --- requests ---

    async def _send(self, request: protocol.Request) -> None:
        self._writer.write(protocol.encode(request))
        try:
            # A broken connection is told by the receiver, together with the reason.
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(self._stall_seconds):
                    await self._writer.drain()
        except TimeoutError:
            await self._child.stop()
            raise stalled(self._child, "reading", self._stall_seconds) from None

    def _forget(self, request_id: int) -> None:
        """Stop listening to an answer, and stop the engine from writing it if it still does."""
        answer = self._answers.pop(request_id, None)
        if answer is not None and not answer.ended:
            self._cancel(request_id)

    def _cancel(self, request_id: int) -> None:
        if not self._writer.is_closing():
            self._writer.write(protocol.encode(protocol.Cancel(id=request_id)))

    # --- replies ---

    async def _receive(self) -> None:
        try:
            while True:
                reply = await _read_reply(self._reader)
                self._heard_at = time.monotonic()
                self._dispatch(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # how the process ended says more
        except (TooLarge, *UNDECODABLE):
            logger.exception("engine breaks the protocol", extra={"child": self._child.name})
        await self._bury()

    def _dispatch(self, reply: Reply) -> None:
        if isinstance(reply, protocol.Load):
            self.load = reply
        elif isinstance(reply, Delta | Finished | Failed) and (
            # Else it was cancelled, and the engine did not know yet.
            answer := self._answers.get(reply.id)
        ):
            self._hand_over(reply, answer)

    def _hand_over(self, reply: Delta | Finished | Failed, answer: Answer) -> None:
        match reply:
            case Delta():
                answer.add(reply.text, reply.likelihoods, reply.calls)
                if answer.ended:
                    self._cancel(reply.id)
            case Finished():
                self.answered += 1
                answer.end(reply)
            case Failed():
                answer.end(error_of(reply))

    async def _bury(self) -> None:
        """The connection has ended: see the process end, then tell everyone who waits."""
        self._writer.close()
        if not self._has_stalled:
            self._watch.cancel()
        await see_end(self._child)
        self._tell_all()
        told = {"child": self._child.name} | ({} if self._stopping else {"reason": self.last_words})
        logger.log(logging.INFO if self._stopping else logging.ERROR, "engine ended", extra=told)

    def _tell_all(self) -> None:
        self.last_words = self._child.describe_death()
        for answer in self._answers.values():
            answer.end(self._ended())

    def _ended(self) -> ChildFailed:
        if self._stopping:
            return stopped(self._child)
        if self._has_stalled:
            return stalled(self._child, "answering", self._stall_seconds)
        return died(self._child)


async def start(
    name: str,
    gguf_path: Path,
    *,
    n_ctx: int,
    threads: int,
    slots: int,
    adapter_budget_bytes: int = 0,
    stall_seconds: float = 60,
    program: Sequence[str] = PROGRAM,
    pass_fds: Sequence[int] = (),
) -> Engine:
    """Start an engine and wait until its model is loaded; it keeps the inherited `pass_fds` to its end.

    `name` is for logs; `n_ctx` is cut to what the model was trained with, and shared by the `slots` answers
    that run at once; adapters may take `adapter_budget_bytes`. Raises ChildFailed if the model cannot be
    loaded, the process dies, or loading shows no progress for `stall_seconds`, as for answers later.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            child = await process.start(
                name,
                [
                    *program,
                    str(gguf_path),
                    f"--n-ctx={n_ctx}",
                    f"--threads={threads}",
                    f"--slots={slots}",
                    f"--adapter-budget-bytes={adapter_budget_bytes}",
                    f"--socket-fd={theirs.fileno()}",
                ],
                pass_fds=(theirs.fileno(), *pass_fds),
                environment=environment(),
            )
    except BaseException:
        ours.close()
        raise
    try:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            loaded = await _wait_until_loaded(child, reader, stall_seconds)
        except BaseException:
            writer.close()
            raise
    except BaseException:
        # Whoever gives up, at whatever moment, leaves no process behind.
        await child.stop()
        raise
    return Engine(child, reader, writer, loaded, stall_seconds)


async def _wait_until_loaded(
    child: process.Child, reader: asyncio.StreamReader, stall_seconds: float
) -> Loaded:
    try:
        async with asyncio.timeout(stall_seconds) as deadline:
            while True:
                reply = await _read_reply(reader)
                match reply:
                    case protocol.Loading():
                        deadline.reschedule(asyncio.get_running_loop().time() + stall_seconds)
                    case Loaded():
                        return reply
                    case Failed():
                        raise ChildFailed(reply.code, reply.message, next_step=reply.next_step)
    except TimeoutError:
        raise stalled(child, "loading", stall_seconds) from None
    except (asyncio.IncompleteReadError, ConnectionError):
        await see_end(child)
        raise died(child) from None


async def _read_reply(reader: asyncio.StreamReader) -> Reply:
    length = protocol.body_length(await reader.readexactly(protocol.HEADER_BYTES))
    return protocol.decode_reply(await reader.readexactly(length))
