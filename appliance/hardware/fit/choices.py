"""What fits: for each technique and row length the micro-batch of a job, for each file its serving.

Only compares needs with what a machine has; what is held at the moment is the lease's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import msgspec

from appliance.hardware.fit import needs, planner
from appliance.hardware.fit.kv_cache import KvType, cache_bytes
from appliance.hardware.fit.machine import Machine
from appliance.hardware.fit.planner import Setup
from appliance.hardware.fit.shapes import ModelShape
from appliance.records import Technique

TECHNIQUES: tuple[Technique, ...] = get_args(Technique)
# Each is half of the next one; what is shorter needs less.
_MOST_POWERS = 4


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes needed beside bytes there are. What is missing has a negative margin.

    The percentage is of what there is; None where there is nothing.
    """

    needed_bytes: int
    available_bytes: int
    margin_bytes: int
    margin_percent: float | None
    fits: bool


class TrainingChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`per_device_train_batch_size` is what a job would get; where none fits, `room` is that of one row."""

    technique: Technique
    row_tokens: int
    per_device_train_batch_size: int | None
    room: Room


class ServedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF file to be served; `predicted` says that it does not exist yet."""

    quantization: str
    file_bytes: int
    predicted: bool


class ServingChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`room` is that of file, key-value cache and engine together."""

    file: ServedFile
    n_ctx: int
    cache_bytes: int
    room: Room


def room(needed_bytes: int, available_bytes: int) -> Room:
    """Compare two sizes."""
    margin = available_bytes - needed_bytes
    return Room(
        needed_bytes=needed_bytes,
        available_bytes=available_bytes,
        margin_bytes=margin,
        margin_percent=100 * margin / available_bytes if available_bytes > 0 else None,
        fits=margin >= 0,
    )


def row_lengths(longest_row_tokens: int, limit: int) -> tuple[int, ...]:
    """The data's own longest row, and the largest powers of two up to `limit` tokens, rising."""
    powers = [1 << exponent for exponent in range(6, limit.bit_length()) if 1 << exponent <= limit]
    return tuple(sorted({min(longest_row_tokens, limit), *powers[-_MOST_POWERS:]}))


def training_choices(
    setup: Setup, lengths: Sequence[int], machine: Machine
) -> Iterator[TrainingChoice]:
    """One for each technique and row length; `setup` says all the rest."""
    for technique in TECHNIQUES:
        for length in lengths:
            yield _training_choice(_varied(setup, technique, length), machine)


def _training_choice(setup: Setup, machine: Machine) -> TrainingChoice:
    found = planner.with_fitting_micro_batch(setup, machine)
    needed = planner.verdict(found, machine).training_bytes
    fits = needed <= machine.device_bytes
    return TrainingChoice(
        technique=setup.technique,
        row_tokens=setup.data.longest_row_tokens,
        per_device_train_batch_size=(
            found.hyperparameters.per_device_train_batch_size if fits else None
        ),
        room=room(needed, machine.device_bytes),
    )


def _varied(setup: Setup, technique: Technique, length: int) -> Setup:
    return msgspec.structs.replace(
        setup,
        technique=technique,
        hyperparameters=msgspec.structs.replace(setup.hyperparameters, max_length=length),
        data=msgspec.structs.replace(setup.data, longest_row_tokens=length),
    )


def serving_choices(
    shape: ModelShape, files: Iterable[ServedFile], n_ctx: int, kv_type: KvType, machine: Machine
) -> Iterator[ServingChoice]:
    """One for each file, with a context of `n_ctx` tokens."""
    for file in files:
        total = needs.serving_bytes(shape, file.file_bytes, n_ctx, kv_type, machine.family)
        if not file.predicted:
            # The base's own, which takes on adapters.
            total += needs.adapter_budget_bytes(file.file_bytes)
        yield ServingChoice(
            file=file,
            n_ctx=n_ctx,
            cache_bytes=cache_bytes(shape, n_ctx, kv_type),
            room=room(total, machine.device_bytes),
        )
