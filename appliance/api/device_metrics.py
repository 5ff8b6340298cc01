"""Telemetry as gauges in Prometheus's text format. What a device does not tell has no line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from appliance.hardware.telemetry import Reading

Value = Callable[[Reading], float | None]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


GAUGES: dict[str, tuple[str, Value]] = {
    "utilization_ratio": (
        "Share of time in which it worked, 0 to 1",
        lambda reading: _scaled(reading.utilization_percent, 0.01),
    ),
    "memory_used_bytes": (
        "Its own memory that is in use",
        lambda reading: reading.memory_used_bytes,
    ),
    "temperature_celsius": ("Temperature", lambda reading: reading.temperature_celsius),
    "power_watts": ("Power that it takes", lambda reading: reading.power_watts),
    "sm_clock_hertz": (
        "Clock of the streaming multiprocessors",
        lambda reading: _scaled(reading.sm_clock_mhz, 1e6),
    ),
    "throttled": (
        "1 while it is slower than it could be: heat, power",
        lambda reading: None if reading.throttled_by is None else float(bool(reading.throttled_by)),
    ),
}


class DeviceMetrics:
    """Some readings as a collector of prometheus_client."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family for each thing that at least one device tells."""
        for name, (text, value) in GAUGES.items():
            family = GaugeMetricFamily(f"appliance_gpu_{name}", text, labels=["device"])
            for reading in self._readings:
                if (told := value(reading)) is not None:
                    family.add_metric([reading.device], told)
            if family.samples:
                yield family


def text(readings: Sequence[Reading]) -> bytes:
    """The readings as lines of Prometheus's format."""
    registry = CollectorRegistry()
    registry.register(DeviceMetrics(readings))
    return generate_latest(registry)
