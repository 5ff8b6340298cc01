"""A few optimizer steps of the training that a plan describes, to see how fast this box is.

The real training child does them, with a lease as a job has it, in a directory that is gone afterwards:
nothing is stored, nothing is released. One at a time. Knows nothing of prices.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import msgspec

from appliance.child_records import Programs, Progress, TrainingResult, TrainingSpec
from appliance.errors import ChildFailed
from appliance.hardware import energy
from appliance.hardware.fit import duration
from appliance.hardware.fit.duration import Pace, Step
from appliance.hardware.lease import Holding, Ledger
from appliance.hardware.sensors import Sensors
from appliance.jobs import scratch, specs, stages
from appliance.jobs.estimate import Estimate
from appliance.process import Child
from appliance.settings import Settings
from appliance.store.store import Store

HOLDER = "warm-up"
# Any: rows come in an order of its own for each seed, and a job without one draws it.
_SEED = 0


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what the child counted of the whole training.

    `watts` is the mean of what the device told between the first step and the end, None if it told nothing.
    `load_average` is that of the minute before: processes that ran or wanted to, while a training runs only
    when nobody else wants the CPU. `beside` are trainings and releases that had their part of the device at
    the same time.
    """

    pace: Pace
    planned_tokens: int
    planned_validations: int
    watts: float | None
    load_average: float
    beside: tuple[Holding, ...]


async def measure(
    store: Store,
    settings: Settings,
    programs: Programs,
    ledger: Ledger,
    sensors: Sensors,
    wanted: Estimate,
    steps: int,
    on_progress: Callable[[list[Progress]], None],
) -> WarmUp:
    """Train by the plan of `wanted` for so many steps, at least duration.LEAST_STEPS.

    Raises NoMemory if others hold the memory, Busy if another warm-up runs, ChildFailed with what the child
    said.
    """
    with scratch.one_at_a_time(store, HOLDER) as directory:
        spec = _spec(store, settings, wanted, directory, steps)
        beside = tuple(each for each in ledger.holdings() if each.purpose != "serving")
        with ledger.grant(HOLDER, "training", wanted.plan.training_bytes or 0) as lease:
            watch = _Watch(sensors, on_progress)
            load_average, began_at = os.getloadavg()[0], time.monotonic()
            result = await stages.run(
                HOLDER,
                programs.training,
                directory / "training",
                spec,
                TrainingResult,
                on_progress=watch.note,
                stall_timeout_seconds=settings.stall_timeout_seconds,
                pass_fds=(lease.descriptor,),
                on_poll=watch.poll,
            )
            seconds = time.monotonic() - began_at
    return WarmUp(
        pace=_pace(watch.lines, seconds),
        planned_tokens=result.planned_tokens,
        planned_validations=result.planned_validations,
        watts=fmean(watch.watts) if watch.watts else None,
        load_average=load_average,
        beside=beside,
    )


def _spec(
    store: Store, settings: Settings, wanted: Estimate, directory: Path, steps: int
) -> TrainingSpec:
    train = directory / specs.TRAIN_FILE
    # A name of its own: the file may be deleted meanwhile.
    store.files.link_content(wanted.file, train)
    spec = specs.training_of_plan(
        store, settings, wanted.plan, wanted.base, train=train, validation=None, seed=_SEED
    )
    return msgspec.structs.replace(spec, max_steps=steps)


class _Watch:
    """Collects what the child reports, and the power while it makes steps."""

    def __init__(self, sensors: Sensors, on_progress: Callable[[list[Progress]], None]) -> None:
        self._sensors = sensors
        self._on_progress = on_progress
        self.lines: list[Progress] = []
        self.watts: list[float] = []

    def note(self, lines: list[Progress]) -> None:
        self.lines += lines
        self._on_progress(lines)

    async def poll(self, child: Child) -> None:
        if child.returncode is not None or not _steps(self.lines):
            return
        watts = energy.power(await self._sensors.now())
        if watts is not None:
            self.watts.append(watts)


def _pace(lines: Sequence[Progress], all_seconds: float) -> Pace:
    steps = _steps(lines)
    if len(steps) < duration.LEAST_STEPS:
        raise ChildFailed(
            "too_few_steps",
            f"a warm-up should report {duration.LEAST_STEPS} steps or more; it reported {len(steps)}",
            next_step="raise --warm-up-steps",
        )
    validated = [each.data["seconds"] for each in lines if each.data and "valid_loss" in each.data]
    return duration.pace(
        steps,
        validation_seconds=validated[-1] - steps[-1].seconds if validated else 0.0,
        all_seconds=all_seconds,
    )


def _steps(lines: Sequence[Progress]) -> list[Step]:
    return [
        Step(each.data["seconds"], each.data["tokens"])
        for each in lines
        if each.data and "train_loss" in each.data
    ]
