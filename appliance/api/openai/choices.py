"""Several answers, to one prompt or to several, written at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from appliance.engine.protocol import Delta, Finished, Prompt, Sampling
from appliance.engine.tools import Tools
from appliance.serving.model import Model

Event = Delta | Finished


async def choices(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, n: int, tools: Tools | None = None
) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of `n` answers to each prompt, each with the answer's number; the first failure ends all.

    The answers to the first prompt have the first numbers. With a seed each answer to a prompt has one of its
    own, the first the one that was asked for. Use `contextlib.aclosing`.
    """
    total = len(prompts) * n
    if total == 1:
        async with aclosing(model.generate(prompts[0], sampling, tools)) as events:
            async for only in events:
                yield 0, only
        return
    # One event a choice waits here: who does not read fills the engine client's own, bounded, memory.
    arrived: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(maxsize=total)

    async def pump(index: int) -> None:
        seed = None if sampling.seed is None else _wrapped(sampling.seed + index % n)
        own = msgspec.structs.replace(sampling, seed=seed)
        try:
            async with aclosing(model.generate(prompts[index // n], own, tools)) as events:
                async for event in events:
                    await arrived.put((index, event))
        except Exception as exc:
            # Raised again by whoever reads.
            await arrived.put((index, exc))

    pumps = {asyncio.create_task(pump(index)) for index in range(total)}
    try:
        left = total
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
