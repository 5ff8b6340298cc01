"""A load under way."""

from __future__ import annotations

import asyncio
import dataclasses

from appliance.serving.slots import Slot


@dataclasses.dataclass
class PendingLoad:
    """Shared by everybody who waits for it; they become the users of what it gives.

    It goes on without them once it has begun, or if it is to replace an engine that died: then `used_at` is
    when that was last used.
    """

    task: asyncio.Task[None]
    waiting: int = 0
    begun: bool = False
    used_at: float | None = None
    slot: Slot | None = None

    @property
    def goes_on(self) -> bool:
        """Whether it does although nobody waits for it."""
        return self.begun or self.used_at is not None
