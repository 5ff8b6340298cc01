"""Does llama.cpp decode here? Decided by a real answer of an imported model, in a real engine child."""

from __future__ import annotations

from appliance.checks.finding import Finding
from appliance.engine import client
from appliance.engine.protocol import Finished, Message, Sampling
from appliance.errors import ApplianceError
from appliance.settings import Settings
from appliance.store.store import Store

NAME = "llama.cpp decode"
N_CTX = 512
MAX_TOKENS = 8


async def check(settings: Settings) -> Finding:
    """Load the oldest base model and let it say a few words."""
    store = Store(settings.state_dir)
    try:
        bases = store.catalog.bases()
    finally:
        store.close()
    if not bases:
        return Finding(
            check=NAME,
            outcome="not checked",
            found="no base model has been imported",
            next_step="appliance models import",
        )
    base = bases[0]
    try:
        engine = await client.start(
            base.name,
            settings.state_dir / base.files[0].path,
            n_ctx=N_CTX,
            threads=settings.thread_count,
        )
    except ApplianceError as exc:
        return Finding(check=NAME, outcome="failed", found=str(exc), next_step="./install.sh")
    try:
        return await _answer(engine, base.name)
    except ApplianceError as exc:
        return Finding(check=NAME, outcome="failed", found=str(exc), next_step="./install.sh")
    finally:
        await engine.stop()


async def _answer(engine: client.Engine, name: str) -> Finding:
    question = [Message(role="user", content="Say hello.")]
    events = engine.generate(question, Sampling(max_tokens=MAX_TOKENS, temperature=0.0))
    async for event in events:
        if isinstance(event, Finished):
            speed = event.completion_tokens / max(event.generation_seconds, 1e-9)
            found = f"{name}: {event.completion_tokens} tokens, {speed:.0f} tokens/s"
            return Finding(check=NAME, outcome="ok", found=found)
    raise AssertionError("an engine's events end with Finished or with an error")
