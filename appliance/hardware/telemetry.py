"""What the accelerator is doing now: load, memory, heat, power, clocks, from NVML and a Jetson's files.

Only reads, and needs no rights for it. None means that the device does not say. A Jetson's NVML answers some
questions with success and zero: no GPU that works is at 0 °C, so such answers count as none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pynvml

from appliance.hardware import nvml
from appliance.hardware.files import number, text

# Bits of nvmlClocksEventReasons in nvml.h that mean: slower than it could be. Idle and settings of the
# operator's own are none.
_THROTTLE_REASONS = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "power limit",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "heat",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "heat, by hardware",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}
_THERMAL_ZONES = "sys/devices/virtual/thermal"
# Per mille; where it is depends on the JetPack release.
_GPU_LOADS = (
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
)
_POWER_MONITORS = "sys/bus/i2c/devices"
# What a whole Jetson takes in, on one rail of which others are parts, or on several: AGX Orin has no VDD_IN
# (github.com/rbonghi/jetson_stats, issue 344). **Not tried on a Jetson here.**
_WHOLE = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
BOARD = "board"
# No chip lives at it.
_MOST_CELSIUS = 200


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or a Jetson's GPU and board, at one moment.

    `device` is "gpu0", "gpu1" … in NVML's order, or "board": two GPUs may have the same name.
    """

    device: str
    name: str
    utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    sm_clock_mhz: int | None = None
    throttled_by: tuple[str, ...] | None = None


def read(root: Path = Path("/")) -> list[Reading]:
    """Every GPU that says anything, and the board, if it is a Jetson; /sys is read below `root`."""
    return [each for each in (*_gpus(), _board(root)) if each is not None]


def _gpus() -> list[Reading | None]:
    try:
        with nvml.session() as available:
            count = _answer(pynvml.nvmlDeviceGetCount) if available else 0
            return [_gpu(index) for index in range(min(count or 0, nvml.MOST_GPUS))]
    except pynvml.NVMLError:
        # Why NVML does not start is told by the probe; there is nothing to measure.
        return []


def _gpu(index: int) -> Reading | None:
    handle = _answer(pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return None
    temperature = _answer(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    device, name = f"gpu{index}", _answer(pynvml.nvmlDeviceGetName, handle) or "unknown"
    rates = _answer(pynvml.nvmlDeviceGetUtilizationRates, handle)
    if temperature == 0:
        return Reading(device=device, name=name)
    if temperature is not None and temperature > _MOST_CELSIUS:
        # Below zero, taken for a number without a sign.
        temperature = None
    memory = _answer(pynvml.nvmlDeviceGetMemoryInfo, handle)
    power_mw = _answer(pynvml.nvmlDeviceGetPowerUsage, handle)
    clock = _answer(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM)
    reasons = _answer(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    return Reading(
        device=device,
        name=name,
        utilization_percent=None if rates is None else float(rates.gpu),
        memory_used_bytes=memory.used if memory and memory.total else None,
        temperature_celsius=None if temperature is None else float(temperature),
        power_watts=None if power_mw is None else power_mw / 1000,
        sm_clock_mhz=clock,
        throttled_by=None if reasons is None else _words(reasons),
    )


def _words(reasons: int) -> tuple[str, ...]:
    return tuple(word for bit, word in _THROTTLE_REASONS.items() if reasons & bit)


def _answer(call: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer, or None: that a device does not say something is the ordinary case here."""
    try:
        return call(*arguments)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _board(root: Path) -> Reading | None:
    """A Jetson's own sensors; None where neither its GPU's load nor its power is to be read."""
    load_per_mille = next(
        (found for path in _GPU_LOADS if (found := number(root / path)) is not None), None
    )
    power_watts = _board_power(root)
    if load_per_mille is None and power_watts is None:
        return None
    return Reading(
        device=BOARD,
        name="board",
        utilization_percent=None if load_per_mille is None else load_per_mille / 10,
        temperature_celsius=_hottest(root),
        power_watts=power_watts,
    )


def _hottest(root: Path) -> float | None:
    """The junction temperature where it is given, else the GPU's."""
    celsius = {}
    for zone in sorted((root / _THERMAL_ZONES).glob("thermal_zone*")):
        if (millidegrees := number(zone / "temp")) is not None:
            celsius[text(zone / "type").strip().removesuffix("-thermal")] = millidegrees / 1000
    return celsius.get("tj", celsius.get("gpu"))


def _board_power(root: Path) -> float | None:
    """Volts times amperes of the INA3221 channels that are the whole board's; None unless all are told."""
    watts = {}
    for label in (root / _POWER_MONITORS).glob("*/hwmon/hwmon*/in*_label"):
        channel = label.name.removeprefix("in").removesuffix("_label")
        millivolts = number(label.with_name(f"in{channel}_input"))
        milliamperes = number(label.with_name(f"curr{channel}_input"))
        if millivolts is not None and milliamperes is not None:
            watts[text(label).strip()] = millivolts * milliamperes / 1e6
    for rails in _WHOLE:
        if watts.keys() >= set(rails):
            return sum(watts[rail] for rail in rails)
    return None
