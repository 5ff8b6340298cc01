"""The proof that a model can be served: it is loaded, and answers."""

from __future__ import annotations

from pathlib import Path

from appliance.engine.protocol import Finished, Message, Sampling
from appliance.serving.router import Router


async def answer_once(router: Router, name: str, path: Path, adapter: Path | None = None) -> None:
    """Load a file under a name that need not be in the catalogue yet, and have it say one token."""
    async with router.engine(name, path) as engine:
        question = [Message(role="user", content="Hello")]
        sampling = Sampling(max_tokens=1, temperature=0.0)
        async for event in engine.generate(question, sampling, adapter=adapter):
            if isinstance(event, Finished):
                return
