"""When work must rest because a device is too hot, and when it may go on. Pure: the clock is handed in.

Starts, stops and measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from appliance.child_records import Progress
from appliance.hardware.telemetry import Reading
from appliance.store.rows import new_id

# How much cooler than the limit every device must be: at the limit itself work would stop at once again.
MARGIN_CELSIUS = 5
# A device that no longer tells its temperature is believed to be as hot as it was, but not for ever.
LAST_WORD_SECONDS = 60.0


class _Told(msgspec.Struct, frozen=True):
    celsius: float
    name: str
    at_seconds: float


class Heat:
    """Rests at the limit, goes on well below it."""

    def __init__(self, limit_celsius: float) -> None:
        self.resting = False
        self._limit_celsius = limit_celsius
        self._rests_since = 0.0
        self._told: dict[str, _Told] = {}

    def judge(self, at_seconds: float, readings: Iterable[Reading]) -> Progress | None:
        """Change `resting` by the readings of this moment; the event that says so, or None."""
        hottest = self._hottest(at_seconds, readings)
        if not self.resting and hottest is not None and hottest.celsius >= self._limit_celsius:
            self.resting, self._rests_since = True, at_seconds
            return self._pause(hottest)
        cool_celsius = self._limit_celsius - MARGIN_CELSIUS
        if self.resting and (hottest is None or hottest.celsius <= cool_celsius):
            self.resting = False
            return self._go_on(hottest, at_seconds - self._rests_since)
        return None

    def _hottest(self, at_seconds: float, readings: Iterable[Reading]) -> _Told | None:
        """By the last word of each device."""
        for each in readings:
            if each.temperature_celsius is not None:
                self._told[each.device] = _Told(each.temperature_celsius, each.name, at_seconds)
        self._told = {
            device: told
            for device, told in self._told.items()
            if at_seconds - told.at_seconds <= LAST_WORD_SECONDS
        }
        return max(self._told.values(), key=lambda told: told.celsius, default=None)

    def _pause(self, hottest: _Told) -> Progress:
        return Progress(
            # Each pause is told, however often there is one.
            key=new_id("paused:", 8),
            level="warn",
            message=f"Paused: {hottest.name} is at {hottest.celsius:g} °C, "
            f"the limit is {self._limit_celsius:g} °C",
            data={
                "temperature_celsius": hottest.celsius,
                "thermal_limit_celsius": self._limit_celsius,
            },
        )

    def _go_on(self, hottest: _Told | None, paused_seconds: float) -> Progress:
        why = (
            f"no temperature has been told for {LAST_WORD_SECONDS:.0f} s"
            if hottest is None
            else f"{hottest.name} is at {hottest.celsius:g} °C"
        )
        return Progress(
            key=new_id("continued:", 8),
            level="warn" if hottest is None else "info",
            message=f"Continued after {paused_seconds:.0f} s: {why}",
            data={"paused_seconds": round(paused_seconds, 1)},
        )
