"""Start a real engine and talk to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from appliance.engine import client
from appliance.engine.client import Engine
from appliance.engine.protocol import Finished, Generate, Message, Sampling

if TYPE_CHECKING:
    from appliance.engine.scheduler import Scheduler

GREEDY = Sampling(temperature=0.0)
# Asked so, the starter model counts until its answer is cut.
ENDLESS = "Write the numbers from 1 to 2000, one per line, and nothing else."


class Reply(msgspec.Struct):
    """A whole answer, the pieces it came in, and how it ended."""

    pieces: list[str]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def user(text: str) -> list[Message]:
    return [
        Message(role="system", content="You are a helpful assistant."),
        Message(role="user", content=text),
    ]


def add(scheduler: Scheduler, request: Generate) -> None:
    """Hand a request to a scheduler as the engine's other thread would."""
    prompt = scheduler._runtime.vocabulary.prompt(request.prompt, request.tools)
    scheduler.add(request, prompt)


@contextlib.asynccontextmanager
async def running(gguf: Path, **options: Any) -> AsyncIterator[Engine]:
    """One thread: two of them wait for each other by spinning when something else wants the CPUs."""
    engine = await client.start(
        "engine", gguf, **{"n_ctx": 1024, "threads": 1, "slots": 4, **options}
    )
    try:
        yield engine
    finally:
        await engine.stop()


async def ask(
    engine: Engine, prompt: str | list[Message], sampling: Sampling = GREEDY, **changes: Any
) -> Reply:
    messages = user(prompt) if isinstance(prompt, str) else prompt
    pieces: list[str] = []
    async for piece in engine.generate(messages, msgspec.structs.replace(sampling, **changes)):
        if isinstance(piece, Finished):
            return Reply(pieces, piece)
        pieces.append(piece.text)
    raise AssertionError("an answer should end with Finished")
