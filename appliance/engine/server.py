"""The engine's three threads: two read the connection and prepare prompts (`intake`), one owns llama.cpp and
writes.

What was read takes effect between two decode calls. The end of the connection is the end of the process.
"""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NoReturn

from appliance.engine import protocol
from appliance.engine.intake import Arrival, Inbox, Intake, Prepared, failed
from appliance.engine.protocol import Cancel, Failed, Loaded, Loading, Reply, Working
from appliance.engine.runtime import Runtime
from appliance.engine.scheduler import Event, Failure, Scheduler
from appliance.errors import ApplianceError, ChildFailed

# To take one can mean to read a large grammar, for which the answers that run have to wait.
MOST_TAKEN_AT_ONCE = 4
# llama.cpp reports every tensor.
LEAST_PROGRESS = 0.01

Send = Callable[[Iterable[Reply]], None]


def serve(
    connection: socket.socket,
    gguf: Path,
    *,
    n_ctx: int,
    threads: int,
    slots: int,
    adapter_budget_bytes: int,
) -> NoReturn:
    """Load the model and answer requests until the connection ends; never returns."""
    intake = Intake()

    def work() -> None:
        send = _sender(connection)
        make = partial(
            Runtime,
            gguf,
            n_ctx=n_ctx,
            threads=threads,
            slots=slots,
            adapter_budget_bytes=adapter_budget_bytes,
        )
        runtime = _load(make, send)
        _begin(lambda: intake.prepare(runtime.vocabulary))
        _answer_all(intake.inbox, Scheduler(runtime, slots), send)

    _begin(work)
    stream = connection.makefile("rb")
    _or_die(lambda: intake.read(stream))
    # There is no state to save, and a running decode call could take longer than anyone wants to wait.
    os._exit(0)


def _begin(work: Callable[[], None]) -> None:
    threading.Thread(target=_or_die, args=(work,), daemon=True).start()


def _or_die(work: Callable[[], None]) -> None:
    """No thread may die and leave a process behind that looks alive and answers nothing."""
    try:
        work()
    except ConnectionError:
        # The daemon went away in the middle of something.
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _sender(connection: socket.socket) -> Send:
    def send(replies: Iterable[Reply]) -> None:
        # At once: the daemon wakes up once for all answers of a step.
        connection.sendall(b"".join(map(protocol.encode, replies)))

    return send


def _load(make: Callable[..., Runtime], send: Send) -> Runtime:
    reported = 0.0

    def on_progress(fraction: float) -> None:
        nonlocal reported
        if fraction - reported >= LEAST_PROGRESS:
            reported = fraction
            send([Loading(progress=fraction)])

    try:
        runtime = make(on_progress=on_progress)
    except ApplianceError as exc:
        send([failed(protocol.LOADING_ID, exc)])
        raise
    send([Loaded(n_ctx=runtime.n_ctx, context_length=runtime.context_length)])
    return runtime


def _answer_all(inbox: Inbox, scheduler: Scheduler, send: Send) -> NoReturn:
    told = (0, 0)
    while True:
        refused = [
            each for arrival in _arrived(inbox, scheduler) for each in _take(arrival, scheduler)
        ]
        if refused:
            send(refused)
        if scheduler.busy:
            send([_reply(event) for event in scheduler.step()] or [Working()])
        if scheduler.counts != told:
            told = scheduler.counts
            send([scheduler.load()])


def _arrived(inbox: Inbox, scheduler: Scheduler) -> Iterable[Arrival]:
    """Some of what has come since; with nothing to do, the next that comes."""
    if not scheduler.busy:
        yield inbox.get()
    for _ in range(MOST_TAKEN_AT_ONCE):
        if inbox.empty():
            return
        yield inbox.get()


def _take(arrival: Arrival, scheduler: Scheduler) -> Iterable[Failed]:
    match arrival:
        case Cancel():
            scheduler.cancel(arrival.id)
        case Failed():
            yield arrival
        case Prepared(request, prompt):
            try:
                scheduler.add(request, prompt)
            except ApplianceError as exc:
                yield failed(request.id, exc)
            except Exception:
                # Nothing has been decoded yet: one request may fail so, and no other.
                traceback.print_exc()
                error = ChildFailed("internal_error", "the request should be taken; it was not")
                yield failed(request.id, error)


def _reply(event: Event) -> Reply:
    return failed(event.id, event.error) if isinstance(event, Failure) else event
