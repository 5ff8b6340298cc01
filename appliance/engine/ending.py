"""How an engine ends, seen from the daemon: its process is seen off, and its end told in words."""

from __future__ import annotations

import asyncio

from appliance import process
from appliance.engine.protocol import Failed
from appliance.errors import ApplianceError, ChildFailed, InvalidInput

# From the end of the connection to the end of the process.
DEATH_GRACE_SECONDS = 2.0


async def see_end(child: process.Child) -> None:
    """Wait for the end of a process whose connection has ended; make it end if it does not."""
    ended = asyncio.create_task(child.wait())
    done, _ = await asyncio.wait({ended}, timeout=DEATH_GRACE_SECONDS)
    if not done:
        await child.stop()
    await ended


def stalled(child: process.Child, work: str, stall_seconds: float) -> ChildFailed:
    """The engine said nothing for so long."""
    return ChildFailed(
        "engine_stalled",
        f"{child.name} should show progress of {work} every {stall_seconds:g} s; it has not",
        next_step="try again; raise engine_stall_seconds on a slow device",
    )


def stopped(child: process.Child) -> ChildFailed:
    """The daemon has ended the engine."""
    return ChildFailed(
        "engine_stopped",
        f"{child.name} should answer, but it was stopped",
        next_step="send the request again",
    )


def died(child: process.Child) -> ChildFailed:
    """The engine ended by itself, or by somebody else's hand."""
    return ChildFailed(
        "engine_died",
        f"{child.name} should answer, but: {child.describe_death()}",
        next_step="try again; the model is loaded anew",
    )


def error_of(reply: Failed) -> ApplianceError:
    """What an engine reports."""
    kind = InvalidInput if reply.caller_at_fault else ChildFailed
    return kind(reply.code, reply.message, param=reply.param, next_step=reply.next_step)
