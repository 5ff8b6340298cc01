"""What comes over the connection, made ready for the scheduler.

One thread reads, and a cancellation takes effect at once; another renders and tokenises, so that neither a
slow template nor a prompt of megabytes keeps answers waiting. Knows nothing of contexts.
"""

from __future__ import annotations

import queue
import threading
import traceback
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

from appliance.engine import protocol
from appliance.engine.protocol import Cancel, Failed, Generate, Request
from appliance.errors import ApplianceError, ChildFailed, InvalidInput

if TYPE_CHECKING:
    from appliance.engine.vocabulary import Vocabulary


class Prepared(NamedTuple):
    """A request with the tokens of its prompt."""

    request: Generate
    prompt: list[int]


Arrival = Prepared | Cancel | Failed
Inbox = queue.SimpleQueue[Arrival]


class Intake:
    """Requests on their way; the scheduler's thread takes them from `inbox`."""

    def __init__(self) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        # In the order in which they came; what is cancelled goes.
        self._waiting: dict[int, Generate] = {}
        self._changed = threading.Condition()
        # When each client had a prompt prepared last, as a number that grows.
        self._turns: dict[str, int] = {}
        self._count = 0

    def read(self, stream: BinaryIO) -> None:
        """Read to the end of the connection."""
        while len(header := stream.read(protocol.HEADER_BYTES)) == protocol.HEADER_BYTES:
            length = protocol.body_length(header)
            body = stream.read(length)
            if len(body) < length:
                return
            self._note(protocol.decode_request(body))

    def _note(self, request: Request) -> None:
        with self._changed:
            if isinstance(request, Generate):
                self._waiting[request.id] = request
                self._changed.notify()
            elif self._waiting.pop(request.id, None) is None:
                self.inbox.put(request)

    def prepare(self, vocabulary: Vocabulary) -> NoReturn:
        """Make prompts ready, one after the other; clients take turns."""
        while True:
            request = self._next()
            arrival = _prepared(request, vocabulary)
            with self._changed:
                # Else it was cancelled meanwhile.
                if self._waiting.pop(request.id, None) is not None:
                    self.inbox.put(arrival)

    def _next(self) -> Generate:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            request = min(self._waiting.values(), key=lambda each: self._turns.get(each.client, 0))
            self._count += 1
            self._turns[request.client] = self._count
            return request


def _prepared(request: Generate, vocabulary: Vocabulary) -> Prepared | Failed:
    try:
        return Prepared(request, vocabulary.prompt(request.prompt, request.tools))
    except ApplianceError as exc:
        return failed(request.id, exc)
    except RecursionError:
        return failed(
            request.id,
            InvalidInput(
                "nested_too_deeply",
                "schemas and arguments should be nested less deeply than Python follows; they are not",
                param="messages" if request.tools is None else "tools",
            ),
        )
    except Exception:
        # One request may fail so, and no other.
        traceback.print_exc()
        return failed(
            request.id, ChildFailed("internal_error", "the prompt should be read; it was not")
        )


def failed(request_id: int, error: ApplianceError) -> Failed:
    """An error as the daemon is told it."""
    return Failed(
        id=request_id,
        code=error.code,
        message=error.message,
        param=error.param,
        next_step=error.next_step,
        caller_at_fault=isinstance(error, InvalidInput),
    )
