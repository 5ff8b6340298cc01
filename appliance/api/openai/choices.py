"""Several answers to one question, written at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from appliance.engine.client import Engine
from appliance.engine.protocol import Delta, Finished, Message, Sampling
from appliance.engine.tools import Tools

Event = Delta | Finished


async def choices(
    engine: Engine, messages: Sequence[Message], sampling: Sampling, n: int, tools: Tools | None
) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of `n` answers, each with the answer's number; the first failure ends all.

    With a seed each has one of its own, the first the one that was asked for. Use `contextlib.aclosing`.
    """
    if n == 1:
        async with aclosing(engine.generate(messages, sampling, tools)) as events:
            async for only in events:
                yield 0, only
        return
    # One event a choice waits here: who does not read fills the engine client's own, bounded, memory.
    arrived: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(maxsize=n)

    async def pump(index: int) -> None:
        seed = None if sampling.seed is None else _wrapped(sampling.seed + index)
        own = msgspec.structs.replace(sampling, seed=seed)
        try:
            async with aclosing(engine.generate(messages, own, tools)) as events:
                async for event in events:
                    await arrived.put((index, event))
        except Exception as exc:
            # Raised again by whoever reads.
            await arrived.put((index, exc))

    pumps = {asyncio.create_task(pump(index)) for index in range(n)}
    try:
        left = n
        while left:
            index, event = await arrived.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Finished)
            yield index, event
    finally:
        for each in pumps:
            each.cancel()
        await asyncio.wait(pumps)


def _wrapped(seed: int) -> int:
    """Within 64 bits, as the engine takes it."""
    return (seed + 2**63) % 2**64 - 2**63
