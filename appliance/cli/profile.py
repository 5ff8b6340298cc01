"""`appliance profile`: what this device is, and which hardware profile it gets. Needs no daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from appliance.cli import output
from appliance.cli.options import JsonPath, with_settings
from appliance.hardware import telemetry
from appliance.hardware.device import Device
from appliance.hardware.fit.machine import GIB, Machine
from appliance.hardware.lease import DIRECTORY, Ledger
from appliance.hardware.probe import ROOT
from appliance.hardware.profiles import HardwareProfile
from appliance.hardware.selection import select
from appliance.hardware.telemetry import Reading
from appliance.settings import Settings


@with_settings(("state_dir", "profile", "profile_dir", "profile_override_file"))
def profile(
    settings: Settings,
    root: Annotated[
        Path, typer.Option(help="Read /proc, /sys and /etc below this: a recorded device.")
    ] = ROOT,
    json_path: JsonPath = None,
) -> None:
    """Show the device, its profile, and why it is that one."""
    selected, now = select(settings, root), telemetry.read(root)
    rows = [
        *_facts(selected.device),
        *((f"{reading.name} now", _measured(reading)) for reading in now),
        *_memory(settings, selected.machine),
        ("profile", f"{selected.profile.name}: {selected.profile.description}"),
        ("reason", selected.reason),
        *_values(selected.profile),
    ]
    found = {**msgspec.to_builtins(selected), "now": now}
    output.show(found, json_path, output.table("Hardware", ("fact", "found"), rows))


def _facts(device: Device) -> Iterator[tuple[str, str]]:
    host = device.host
    features = ", ".join(host.cpu_features) or "none that matter here"
    yield "CPU", f"{host.cpus:g} × {host.machine}: {features}"
    limited = ", limited by a control group" if host.memory_limited else ""
    yield (
        "host memory",
        f"{host.memory_bytes / GIB:.1f} GiB, {host.memory_available_bytes / GIB:.1f} available{limited}",
    )
    yield (
        "disk",
        f"{device.disk.free_bytes / GIB:.1f} of {device.disk.total_bytes / GIB:.1f} GiB free",
    )
    if device.nvml.driver:
        yield "driver", f"{device.nvml.driver}, CUDA {device.nvml.cuda or 'not told'}"
    for gpu in device.nvml.gpus:
        memory = f"{gpu.memory_bytes / GIB:.1f} GiB" if gpu.memory_bytes else "the host's memory"
        yield (
            "GPU",
            f"{gpu.name}: {memory}, compute capability {gpu.compute_capability or 'not told'}",
        )
    for problem in device.nvml.problems:
        yield "problem", problem
    if (board := device.tegra) is not None:
        yield (
            "board",
            f"{board.model}: {board.chip}, module {board.module or 'not told'}, "
            f"L4T {board.l4t or 'not told'}, JetPack {board.jetpack or 'not told'}",
        )


def _memory(settings: Settings, machine: Machine) -> Iterator[tuple[str, str]]:
    yield "for models", f"{machine.device_bytes / GIB:.1f} GiB to train and serve in"
    leases = settings.state_dir / DIRECTORY
    try:
        found = Ledger(leases, machine.device_bytes).holdings() if leases.is_dir() else []
    except PermissionError:
        # The device can be looked at by everybody, the state directory by its owner alone.
        yield "held", f"not told: {leases} is not readable for this user"
        return
    for held in found:
        yield f"held, {held.purpose}", f"{held.bytes / GIB:.2f} GiB by {held.holder}"


def _measured(reading: Reading) -> str:
    used = reading.memory_used_bytes
    told = (
        (reading.utilization_percent, "{:g} % busy"),
        (None if used is None else used / GIB, "{:.1f} GiB in use"),
        (reading.temperature_celsius, "{:g} °C"),
        (reading.power_watts, "{:.1f} W"),
        (reading.sm_clock_mhz, "{} MHz"),
        (", ".join(reading.throttled_by or ()) or None, "slowed down by {}"),
    )
    return ", ".join(form.format(value) for value, form in told if value is not None) or "not told"


def _values(profile: HardwareProfile) -> Iterator[tuple[str, str]]:
    shown = ("name", "description", "family", "gpu_names", "modules")
    for name in profile.__struct_fields__:
        if name not in shown and getattr(profile, name) is not None:
            yield name, msgspec.json.encode(getattr(profile, name)).decode()
