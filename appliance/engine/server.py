"""The engine's two threads: one reads the connection, the other owns llama.cpp and writes.

Requests are answered in the order in which they come, one at a time. A cancellation takes effect between
two decode calls. The end of the connection is the end of the process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from appliance.engine import protocol
from appliance.engine.generation import Generation
from appliance.engine.protocol import (
    Cancel,
    Delta,
    Failed,
    Generate,
    Loaded,
    Loading,
    Reply,
    Working,
)
from appliance.engine.runtime import Runtime
from appliance.engine.sequence import CachedSequence
from appliance.errors import ApplianceError, InvalidInput

# llama.cpp reports every tensor.
LEAST_PROGRESS = 0.01


class _Job:
    def __init__(self, request: Generate) -> None:
        self.request = request
        self.cancelled = threading.Event()


class _Inbox:
    """Requests on their way from the reading to the decoding thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        # Waiting and running; both threads touch it, by single dict operations only.
        self._jobs: dict[int, _Job] = {}

    def add(self, request: Generate) -> None:
        job = self._jobs[request.id] = _Job(request)
        self._waiting.put(job)

    def cancel(self, request_id: int) -> None:
        if job := self._jobs.get(request_id):
            job.cancelled.set()

    def take(self) -> _Job:
        return self._waiting.get()

    def close(self, job: _Job) -> None:
        del self._jobs[job.request.id]


def serve(connection: socket.socket, gguf: Path, *, n_ctx: int, threads: int) -> NoReturn:
    """Load the model and answer requests until the connection ends; never returns."""
    inbox = _Inbox()

    def work() -> None:
        send = _sender(connection)
        runtime = _load(gguf, n_ctx, threads, send)
        sequence = CachedSequence(runtime)
        while True:
            job = inbox.take()
            _answer(job, runtime, sequence, send)
            inbox.close(job)

    threading.Thread(target=_or_die, args=(work,), daemon=True).start()
    stream = connection.makefile("rb")
    _or_die(lambda: _read_requests(stream, inbox))
    # There is no state to save, and a running decode call could take longer than anyone wants to wait.
    os._exit(0)


def _or_die(work: Callable[[], None]) -> None:
    """Neither thread may die and leave a process behind that looks alive and answers nothing."""
    try:
        work()
    except ConnectionError:
        # The daemon went away in the middle of something.
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _read_requests(stream: BinaryIO, inbox: _Inbox) -> None:
    while len(header := stream.read(protocol.HEADER_BYTES)) == protocol.HEADER_BYTES:
        length = protocol.body_length(header)
        body = stream.read(length)
        if len(body) < length:
            return
        request = protocol.decode_request(body)
        if isinstance(request, Cancel):
            inbox.cancel(request.id)
        else:
            inbox.add(request)


def _sender(connection: socket.socket) -> Callable[[Reply], None]:
    def send(reply: Reply) -> None:
        connection.sendall(protocol.encode(reply))

    return send


def _load(gguf: Path, n_ctx: int, threads: int, send: Callable[[Reply], None]) -> Runtime:
    reported = 0.0

    def on_progress(fraction: float) -> None:
        nonlocal reported
        if fraction - reported >= LEAST_PROGRESS:
            reported = fraction
            send(Loading(progress=fraction))

    try:
        runtime = Runtime(gguf, n_ctx=n_ctx, threads=threads, on_progress=on_progress)
    except ApplianceError as exc:
        send(_failed(protocol.LOADING_ID, exc))
        raise
    send(
        Loaded(
            n_ctx=runtime.n_ctx,
            n_vocab=runtime.n_vocab,
            description=runtime.description,
            context_length=runtime.context_length,
        )
    )
    return runtime


def _answer(
    job: _Job, runtime: Runtime, sequence: CachedSequence, send: Callable[[Reply], None]
) -> None:
    if job.cancelled.is_set():
        return
    try:
        with contextlib.closing(Generation(job.request, runtime, sequence)) as generation:
            while generation.finished is None and not job.cancelled.is_set():
                if text := generation.step():
                    send(Delta(id=job.request.id, text=text))
                else:
                    send(Working(id=job.request.id))
            if generation.finished is not None:
                send(generation.finished)
    except ApplianceError as exc:
        send(_failed(job.request.id, exc))


def _failed(request_id: int, error: ApplianceError) -> Failed:
    return Failed(
        id=request_id,
        code=error.code,
        message=error.message,
        param=error.param,
        next_step=error.next_step,
        caller_at_fault=isinstance(error, InvalidInput),
    )
