"""A model that answers: an engine, the adapter to answer with, and who asks."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from pathlib import Path

from appliance.engine.client import Engine
from appliance.engine.protocol import Delta, Finished, Prompt, Sampling
from appliance.engine.tools import Tools


@dataclasses.dataclass(frozen=True)
class Model:
    """What a name gives while its engine is kept loaded."""

    engine: Engine
    adapter: Path | None = None
    client: str = ""

    def generate(
        self, prompt: Prompt, sampling: Sampling, tools: Tools | None = None
    ) -> AsyncGenerator[Delta | Finished, None]:
        """As `Engine.generate`."""
        return self.engine.generate(
            prompt, sampling, tools, adapter=self.adapter, client=self.client
        )
