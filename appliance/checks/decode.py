"""Does llama.cpp decode here? Decided by a real answer of a real model, in a real engine child."""

from __future__ import annotations

from pathlib import Path

from appliance.checks.finding import Finding
from appliance.engine import client
from appliance.engine.protocol import Finished, Message, Sampling
from appliance.records import BaseModel
from appliance.settings import STARTER, Settings
from appliance.store.store import Store

NAME = "llama.cpp decode"
N_CTX = 512
MAX_TOKENS = 8


async def check(settings: Settings) -> Finding:
    """Load a model and let it say a few words; raises ChildFailed if it cannot."""
    model = _model(settings)
    if model is None:
        return Finding(
            check=NAME,
            outcome="not checked",
            found="there is no model yet to try it with",
            next_step="appliance models import",
        )
    name, gguf = model
    engine = await client.start(name, gguf, n_ctx=N_CTX, threads=settings.thread_count, slots=1)
    try:
        return await _answer(engine, name)
    finally:
        await engine.stop()


def _model(settings: Settings) -> tuple[str, Path] | None:
    """Name and file of the oldest base model, else of the starter that the installer laid down."""
    bases = _bases(settings)
    if bases:
        return bases[0].name, settings.state_dir / bases[0].files[0].path
    starters = sorted(STARTER.glob("*.gguf"))
    return (starters[0].name, starters[0]) if starters else None


def _bases(settings: Settings) -> list[BaseModel]:
    # Whoever only asks makes no state directory.
    if not settings.state_dir.is_dir():
        return []
    store = Store(settings.state_dir)
    try:
        return store.catalog.bases()
    finally:
        store.close()


async def _answer(engine: client.Engine, name: str) -> Finding:
    question = [Message(role="user", content="Say hello.")]
    events = engine.generate(question, Sampling(max_tokens=MAX_TOKENS, temperature=0.0))
    async for event in events:
        if isinstance(event, Finished):
            speed = event.completion_tokens / max(event.generation_seconds, 1e-9)
            found = f"{name}: {event.completion_tokens} tokens, {speed:.0f} tokens/s"
            return Finding(check=NAME, outcome="ok", found=found)
    raise AssertionError("an engine's events end with Finished or with an error")
