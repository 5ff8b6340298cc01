"""Energy from power over time. Pure: the clock and the readings are handed in.

Time in which power was not told is counted as such; it is neither zero watts nor guessed. Knows nothing of
what the energy was used for: whatever else ran on the same device is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.hardware.telemetry import BOARD, Reading

# Readings come every few seconds: over a longer gap nobody looked, and a line between its ends is a guess.
LONGEST_GAP_SECONDS = 30.0
SECONDS_PER_HOUR = 3600


# Bounded, because the stored file may be damaged.
Amount = Annotated[float, Meta(ge=0, le=1e12)]


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """Energy, over the time in which power was told, and how long it was not told besides."""

    watt_hours: Amount = 0.0
    known_seconds: Amount = 0.0
    unknown_seconds: Amount = 0.0


class Meter:
    """Adds to what was used before; `used` is the sum."""

    def __init__(self, used: Used) -> None:
        self.used = used
        self._last: tuple[float, float | None] | None = None

    def add(self, at_seconds: float, watts: float | None) -> None:
        """Power at a moment. Between two that are told it is taken for a straight line."""
        if self._last is not None:
            self.used = _longer(self.used, at_seconds - self._last[0], self._last[1], watts)
        self._last = at_seconds, watts


def _longer(used: Used, seconds: float, before: float | None, after: float | None) -> Used:
    if before is None or after is None or seconds > LONGEST_GAP_SECONDS:
        return msgspec.structs.replace(used, unknown_seconds=used.unknown_seconds + seconds)
    watt_hours = (before + after) / 2 * seconds / SECONDS_PER_HOUR
    return msgspec.structs.replace(
        used,
        watt_hours=used.watt_hours + watt_hours,
        known_seconds=used.known_seconds + seconds,
    )


def power(readings: Sequence[Reading]) -> float | None:
    """Watts of the whole board, if this is a Jetson, else of all GPUs; None unless all of it is told.

    A sum without one of the GPUs, or a Jetson's GPU without its board, would pass for the whole.
    """
    counted = [each for each in readings if each.device == BOARD] or readings
    told = [each.power_watts for each in counted if each.power_watts is not None]
    return sum(told) if counted and len(told) == len(counted) else None
