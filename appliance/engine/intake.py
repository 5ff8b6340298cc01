"""What comes over the connection, made ready for the scheduler by the thread that reads.

Conversations are rendered and tokenised here, so that neither a slow template nor a prompt of megabytes
keeps answers waiting. Knows nothing of contexts.
"""

from __future__ import annotations

import queue
import traceback
from concurrent.futures import Future
from typing import BinaryIO, NamedTuple

from appliance.engine import protocol
from appliance.engine.protocol import Cancel, Failed, Generate, Request
from appliance.engine.vocabulary import Vocabulary
from appliance.errors import ApplianceError, ChildFailed, InvalidInput


class Prepared(NamedTuple):
    """A request with the tokens of its prompt."""

    request: Generate
    prompt: list[int]


Arrival = Prepared | Cancel | Failed
Inbox = queue.SimpleQueue[Arrival]


def read_requests(stream: BinaryIO, vocabulary: Future[Vocabulary], inbox: Inbox) -> None:
    """Read to the end of the connection. Requests wait until there is a vocabulary."""
    while len(header := stream.read(protocol.HEADER_BYTES)) == protocol.HEADER_BYTES:
        length = protocol.body_length(header)
        body = stream.read(length)
        if len(body) < length:
            return
        inbox.put(_arrival(protocol.decode_request(body), vocabulary))


def _arrival(request: Request, vocabulary: Future[Vocabulary]) -> Arrival:
    if isinstance(request, Cancel):
        return request
    try:
        return Prepared(request, vocabulary.result().prompt(request.prompt, request.tools))
    except ApplianceError as exc:
        return failed(request.id, exc)
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
