"""Whether a training fits, with which micro-batch, and if not, what is the nearest that does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import msgspec

from appliance.hardware.fit import needs
from appliance.hardware.fit.machine import Machine
from appliance.hardware.fit.needs import Data
from appliance.hardware.fit.shapes import ModelShape
from appliance.records import Hyperparameters, Technique

# With less than these a training is hardly worth it.
LEAST_LENGTH = 64
LEAST_R = 8
# What a job may ask for.
MOST_ACCUMULATION_STEPS = 1024


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """A training whose memory is asked for; an adapter that is trained further has its rank."""

    shape: ModelShape
    technique: Technique
    hyperparameters: Hyperparameters
    data: Data
    r_is_fixed: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a job needs at its peaks, and what there is: in training on the device, in release on the host."""

    training_bytes: int
    device_bytes: int
    release_bytes: int
    host_bytes: int

    @property
    def fits(self) -> bool:
        """Whether both do."""
        return self.training_bytes <= self.device_bytes and self.release_bytes <= self.host_bytes


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A setup that fits, and what of the caller's `appliance` object makes it."""

    setup: Setup
    values: dict[str, str | int]
    verdict: Verdict


def verdict(setup: Setup, machine: Machine) -> Verdict:
    """Compare needs with what the machine has."""
    return Verdict(
        training_bytes=needs.training_bytes(
            setup.shape, setup.technique, setup.hyperparameters, setup.data, machine
        ),
        device_bytes=machine.device_bytes,
        release_bytes=needs.release_bytes(setup.shape),
        host_bytes=machine.host_bytes,
    )


def with_fitting_micro_batch(setup: Setup, machine: Machine) -> Setup:
    """The same optimizer step in smaller micro-batches, halved until training fits or they are one row."""
    while (found := verdict(setup, machine)).training_bytes > found.device_bytes:
        smaller = _halved_micro_batch(setup)
        if smaller is None:
            break
        setup = smaller
    return setup


def nearest_change(setup: Setup, machine: Machine) -> Change | None:
    """The change that costs least: smaller micro-batches change nothing but speed, then a 4-bit base, then
    a lower rank, then shorter rows, then both of these. None if nothing of that helps."""
    for values, changed in _changes(setup, machine):
        found = verdict(changed, machine)
        if values and found.fits:
            return Change(setup=changed, values=values, verdict=found)
    return None


def _changes(setup: Setup, machine: Machine) -> Iterator[tuple[dict[str, str | int], Setup]]:
    techniques: dict[Technique, None] = dict.fromkeys((setup.technique, "qlora"))
    in_small_steps = [
        with_fitting_micro_batch(msgspec.structs.replace(setup, technique=technique), machine)
        for technique in techniques
    ]
    for changed in in_small_steps:
        yield _difference(setup, changed), changed
    ranks = [list(_again(_halved_r, changed)) for changed in in_small_steps]
    shorter = [_again(_halved_length, changed) for changed in in_small_steps]
    together = [_again(_halved_length, each[-1]) for each in ranks if each]
    for changed in itertools.chain(*ranks, *shorter, *together):
        yield _difference(setup, changed), changed


def _again(smaller: Callable[[Setup], Setup | None], setup: Setup) -> Iterator[Setup]:
    while (found := smaller(setup)) is not None:
        yield found
        setup = found


def _halved_micro_batch(setup: Setup) -> Setup | None:
    chosen = setup.hyperparameters
    if chosen.per_device_train_batch_size == 1:
        return None
    rows = chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps
    micro_batch = chosen.per_device_train_batch_size // 2
    # Rounded up: never a smaller step than was asked for.
    steps = -(-rows // micro_batch)
    if steps > MOST_ACCUMULATION_STEPS:
        return None
    return _with(setup, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=steps)


def _halved_r(setup: Setup) -> Setup | None:
    r = setup.hyperparameters.r // 2
    return None if setup.r_is_fixed or r < LEAST_R else _with(setup, r=r)


def _halved_length(setup: Setup) -> Setup | None:
    longest = min(setup.hyperparameters.max_length, setup.data.longest_row_tokens)
    return _with(setup, max_length=longest // 2) if longest // 2 >= LEAST_LENGTH else None


def _with(setup: Setup, **values: int) -> Setup:
    changed = msgspec.structs.replace(setup.hyperparameters, **values)
    return msgspec.structs.replace(setup, hyperparameters=changed)


def _difference(before: Setup, after: Setup) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    if before.technique != after.technique:
        found["technique"] = after.technique
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "r", "max_length"):
        value = getattr(after.hyperparameters, name)
        if value != getattr(before.hyperparameters, name):
            found[f"advanced.{name}"] = value
    return found
