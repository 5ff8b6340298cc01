"""Makes a job's plan fit the device before it is accepted, or refuses it and says what would fit."""

from __future__ import annotations

import msgspec

from appliance.errors import InvalidInput
from appliance.hardware.fit import gguf_size, needs, planner
from appliance.hardware.fit.machine import GIB, Machine
from appliance.hardware.fit.needs import Data
from appliance.hardware.fit.shapes import ModelShape
from appliance.jobs.request import Advanced
from appliance.records import Plan, StoredFile

# What a chat template adds to a conversation beyond what its JSON takes: a default system message.
_TEMPLATE_TOKENS = 64


def data_facts(files: list[StoredFile], max_length: int) -> Data:
    """The most that the rows can be; the training child refuses any of more than `max_length` tokens."""
    longest = longest_row_tokens(files)
    return Data(
        longest_row_tokens=max_length if longest is None else min(longest, max_length),
        bytes=sum(each.bytes for each in files),
    )


def longest_row_tokens(files: list[StoredFile]) -> int | None:
    """More than any row has: no token is shorter than a byte of the row's JSON. None if nobody looked."""
    sizes = [each.longest_row_bytes for each in files]
    return None if None in sizes else max(filter(None, sizes), default=0) + _TEMPLATE_TOKENS


def fit(
    plan: Plan,
    asked: Advanced,
    shape: ModelShape | None,
    data: Data,
    machine: Machine,
    serving_bytes: int,
    n_ctx: int,
) -> tuple[Plan, str]:
    """The plan with micro-batches that fit, and what is to be said of its memory.

    A micro-batch that the caller asked for is left alone. Under `serve_first` the training has to fit
    beside what loaded models hold now, `serving_bytes`. With `n_ctx` tokens of context the result is
    served. Raises InvalidInput: `does_not_fit`, or `fits_only_without_serving`.
    """
    if shape is None:
        return plan, "Memory: what this model's family takes cannot be told beforehand"
    setup = planner.Setup(
        shape=shape,
        technique=plan.technique,
        hyperparameters=plan.hyperparameters,
        data=data,
        r_is_fixed=plan.initial_adapter is not None,
    )
    beside_serving = machine.without(serving_bytes)
    if asked.per_device_train_batch_size is None and asked.gradient_accumulation_steps is None:
        room = beside_serving if plan.policy == "serve_first" else machine
        setup = planner.with_fitting_micro_batch(setup, room)
    found = planner.verdict(setup, machine)
    if not found.fits:
        raise _does_not_fit(setup, found, machine)
    fitted = msgspec.structs.replace(
        plan,
        hyperparameters=setup.hyperparameters,
        training_bytes=found.training_bytes,
        # A GPU's own memory is not used for it.
        release_bytes=0 if machine.family == "discrete" else found.release_bytes,
    )
    _refuse_unservable(shape, plan.quantizations[0], n_ctx, machine)
    if plan.policy == "serve_first" and not planner.verdict(setup, beside_serving).fits:
        raise _fits_only_without_serving(fitted, found.device_bytes, serving_bytes)
    rows = setup.hyperparameters.per_device_train_batch_size
    return fitted, (
        f"Memory: training takes up to {_gib(found.training_bytes)} of {_gib(found.device_bytes)} in "
        f"micro-batches of {rows} row{'s' * (rows > 1)}, the release "
        f"{_gib(found.release_bytes)} of {_gib(found.host_bytes)}"
    )


def _does_not_fit(setup: planner.Setup, found: planner.Verdict, machine: Machine) -> InvalidInput:
    if found.training_bytes > found.device_bytes:
        what, needed, available = "training", found.training_bytes, found.device_bytes
    else:
        what, needed, available = "the release", found.release_bytes, found.host_bytes
    change = planner.nearest_change(setup, machine)
    if change is None:
        next_step = "choose a smaller base model; `appliance fit` shows what fits"
    else:
        values = ", ".join(f"appliance.{name} {value}" for name, value in change.values.items())
        next_step = (
            f"the nearest change that fits is {values}, which takes "
            f"{_gib(change.verdict.training_bytes)}"
            + (", if no row is longer" if "advanced.max_length" in change.values else "")
        )
    return InvalidInput(
        "does_not_fit",
        f"{what} needs {_gib(needed)} of memory; this device has {_gib(available)} for it",
        param="model" if change is None else "appliance",
        next_step=next_step,
    )


def _refuse_unservable(shape: ModelShape, quantization: str, n_ctx: int, machine: Machine) -> None:
    """A job ends with a first answer: what cannot be loaded then should not be trained."""
    file_bytes = gguf_size.file_bytes(shape, quantization)
    needed = needs.serving_bytes(shape, file_bytes, n_ctx, "f16", machine.family)
    if needed > machine.device_bytes:
        raise InvalidInput(
            "does_not_fit",
            f"serving the result as {quantization} needs {_gib(needed)} of memory; this device has "
            f"{_gib(machine.device_bytes)} for it",
            param="appliance.quantizations",
            next_step="ask for a smaller quantization first, or choose a smaller base model",
        )


def _fits_only_without_serving(plan: Plan, device_bytes: int, serving_bytes: int) -> InvalidInput:
    needed = max(plan.training_bytes or 0, plan.release_bytes or 0)
    return InvalidInput(
        "fits_only_without_serving",
        f"the job needs up to {_gib(needed)} of the {_gib(device_bytes)} "
        f"that this device has; loaded models hold {_gib(serving_bytes)} of them, "
        "and by policy serve_first they stay",
        param="appliance.policy",
        next_step="ask for appliance.policy train_first, which unloads models and loads them again, or try "
        "again when they have been unloaded",
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
