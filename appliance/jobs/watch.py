"""Looks at the device while a job's children run: pauses them when it is too hot, and adds up the energy.

The sum lies in `energy.json` in the job's directory and is added to after a restart; of a daemon that is
killed the last seconds before it are missing. Reads nothing from the device itself and decides nothing
about heat: that is `hardware` and `jobs.heat`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from appliance import batch, durable
from appliance.child_records import Progress
from appliance.errors import ApplianceError
from appliance.hardware import energy
from appliance.hardware.energy import Used
from appliance.hardware.sensors import Sensors
from appliance.hardware.telemetry import Reading
from appliance.jobs.heat import Heat
from appliance.process import Child
from appliance.store import rows
from appliance.store.store import Store

logger = logging.getLogger(__name__)

ENERGY = "energy.json"
READ_SECONDS = 2.0
SAVE_SECONDS = 30.0

# Several requests may read a file of it at once.
rows.prepare(Used)


@asynccontextmanager
async def watching(
    store: Store,
    job_id: str,
    stage_directory: Path,
    sensors: Sensors,
    thermal_limit_celsius: int | None,
) -> AsyncIterator[Callable[[Child], Awaitable[None]]]:
    """Measure while the block runs; gives what is to be called with the child about once a second.

    Without a limit nothing is paused.
    """
    path = store.jobs_directory / job_id / ENERGY
    used = await asyncio.to_thread(_read, path)

    def report(events: list[Progress]) -> None:
        store.jobs.report(job_id, "heat", events)

    heat = None if thermal_limit_celsius is None else Heat(thermal_limit_celsius)
    heartbeat = stage_directory / batch.HEARTBEAT
    watch = _Watch(path, used or Used(), sensors, heat, heartbeat, report)
    await watch.measure()
    try:
        yield watch.poll
    finally:
        await watch.measure()
        await watch.tell()
        await watch.save()


class _Watch:
    def __init__(
        self,
        path: Path,
        used: Used,
        sensors: Sensors,
        heat: Heat | None,
        heartbeat: Path,
        report: Callable[[list[Progress]], None],
    ) -> None:
        self._path = path
        self._sensors = sensors
        self._heat = heat
        self._heartbeat = heartbeat
        self._report = report
        self._meter = energy.Meter(used)
        self._untold: list[Progress] = []
        self._read_at = self._saved_at = time.monotonic()

    async def poll(self, child: Child) -> None:
        if time.monotonic() - self._read_at < READ_SECONDS:
            return
        readings = await self.measure()
        # Before its first sign of life a child is not tied to the daemon: stopped then, it would outlive it.
        if self._heat is not None and child.returncode is None and self._heartbeat.exists():
            self._mind(self._heat, child, readings)
        await self.tell()
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            await self.save()

    async def measure(self) -> list[Reading]:
        readings = await self._sensors.now()
        self._read_at = time.monotonic()
        self._meter.add(self._read_at, energy.power(readings))
        return readings

    def _mind(self, heat: Heat, child: Child, readings: list[Reading]) -> None:
        event = heat.judge(self._read_at, readings)
        if event is None:
            return
        if heat.resting:
            child.pause()
        else:
            child.resume()
        logger.warning(event.message, extra={"child": child.name})
        self._untold.append(event)

    async def tell(self) -> None:
        if not self._untold:
            return
        try:
            await asyncio.to_thread(self._report, self._untold)
            self._untold = []
        except ApplianceError as exc:
            # The job does not suffer from it: they are told the next time.
            logger.warning("events not stored yet", extra={"reason": str(exc)})

    async def save(self) -> None:
        try:
            await asyncio.to_thread(durable.write_json, self._path, self._meter.used)
        except OSError as exc:
            # A full disk; the sum is still known, and is saved when there is room again.
            logger.warning("energy not stored yet", extra={"reason": str(exc)})
        self._saved_at = time.monotonic()


def energy_of(store: Store, job_id: str) -> dict[str, Any] | None:
    """What a job's children have used so far; None where power has never been told."""
    used = _read(store.jobs_directory / job_id / ENERGY)
    if used is None or not used.known_seconds:
        return None
    return {
        "watt_hours": round(used.watt_hours, 3),
        "known_seconds": round(used.known_seconds, 1),
        "unknown_seconds": round(used.unknown_seconds, 1),
    }


def tell_energy(store: Store, job_id: str) -> None:
    """The event about a job's energy, for when its last child has ended."""
    used = energy_of(store, job_id)
    if used is None:
        return
    seconds = used["known_seconds"] + used["unknown_seconds"]
    message = (
        f"The accelerator used {used['watt_hours']:.2f} Wh while the job ran "
        f"(power was known for {int(100 * used['known_seconds'] / seconds)} % of {seconds:.0f} s)"
    )
    try:
        store.jobs.report(job_id, "energy", [Progress(key="total", message=message, data=used)])
    except ApplianceError as exc:
        # No job fails for it, and the sum is in the job's description.
        logger.warning("energy not told", extra={"job": job_id, "reason": str(exc)})


def _read(path: Path) -> Used | None:
    if not path.exists():
        return None
    try:
        return durable.read_json(path, Used)
    except ApplianceError as exc:
        # Of what was used before nothing is known then: no reason to lose the job itself.
        logger.warning("energy file is damaged", extra={"reason": str(exc)})
        return None
