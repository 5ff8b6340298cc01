"""Turns what a caller asked for into a plan in which nothing is left open.

Pure: the same request, rows and profile give the same plan. The chosen values follow from few sources:
 - learning rate: 2e-4 for QLoRA, TRL's documentation "LoRA Without Regret" gives about ten times the
   full fine-tuning rate; multiplied by the caller's `learning_rate_multiplier`;
 - epochs: small sets are seen more often, so that about EXAMPLES_SEEN examples pass, within 1 to 5 epochs;
 - effective batch: grows with the data, so that an epoch has at least STEPS_PER_EPOCH updates.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from appliance.errors import InvalidInput
from appliance.hardware.profiles import HardwareProfile
from appliance.jobs.request import Advanced, FineTuningRequest
from appliance.records import BaseModel, Hyperparameters, Plan

LEARNING_RATE = 2e-4
EXAMPLES_SEEN = 1500
STEPS_PER_EPOCH = 40
MAX_AUTO_BATCH = 16
VALIDATION_FRACTION = 0.05
MIN_ROWS = 10
R = 16


class InitialAdapter(NamedTuple):
    """The adapter of an earlier job, to be trained further; its directory is relative to the state's."""

    directory: str
    r: int
    lora_alpha: int


def make(
    request: FineTuningRequest,
    profile: HardwareProfile,
    *,
    base: BaseModel,
    initial_adapter: InitialAdapter | None,
    rows: int,
) -> Plan:
    """The plan of a job over `rows` training rows; raises InvalidInput for what cannot be done."""
    if rows < MIN_ROWS:
        raise InvalidInput(
            "too_few_rows",
            f"a training file should have at least {MIN_ROWS} rows; this one has {rows}",
            param="training_file",
        )
    options = request.appliance
    return Plan(
        base_model=base.name,
        initial_adapter=initial_adapter.directory if initial_adapter else None,
        technique=options.technique or profile.technique,
        hyperparameters=_hyperparameters(request, profile, base, initial_adapter, rows),
        quantizations=options.quantizations or profile.quantizations,
        policy=options.policy or profile.lease_policy,
        importance_matrix=options.importance_matrix,
        validation_fraction=(
            VALIDATION_FRACTION
            if options.validation_fraction is None
            else options.validation_fraction
        ),
    )


def _hyperparameters(
    request: FineTuningRequest,
    profile: HardwareProfile,
    base: BaseModel,
    initial_adapter: InitialAdapter | None,
    rows: int,
) -> Hyperparameters:
    asked = request.method.supervised.hyperparameters
    batch = _auto_batch(rows) if asked.batch_size == "auto" else asked.batch_size
    multiplier = 1.0 if asked.learning_rate_multiplier == "auto" else asked.learning_rate_multiplier
    advanced = request.appliance.advanced
    _refuse_what_cannot_be(advanced, base, initial_adapter)
    micro_batch = advanced.per_device_train_batch_size or min(
        batch, profile.per_device_train_batch_size
    )
    chosen = Hyperparameters(
        num_train_epochs=_auto_epochs(rows) if asked.n_epochs == "auto" else asked.n_epochs,
        learning_rate=LEARNING_RATE * multiplier,
        per_device_train_batch_size=micro_batch,
        # Rounded up: never a smaller batch than was asked for.
        gradient_accumulation_steps=-(-batch // micro_batch),
        lr_scheduler_type="linear",
        warmup_ratio=0.05,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=min(profile.max_length, base.context_length),
        r=initial_adapter.r if initial_adapter else R,
        lora_alpha=initial_adapter.lora_alpha if initial_adapter else 2 * R,
        lora_dropout=0.0,
    )
    return _override(chosen, advanced)


def _refuse_what_cannot_be(
    advanced: Advanced, base: BaseModel, initial_adapter: InitialAdapter | None
) -> None:
    if advanced.max_length is not None and advanced.max_length > base.context_length:
        raise InvalidInput(
            "max_length_too_long",
            f"max_length should be at most the {base.context_length} tokens that {base.name!r} was "
            f"trained with; it is {advanced.max_length}",
            param="appliance.advanced.max_length",
        )
    for name in ("r", "lora_alpha") if initial_adapter else ():
        asked, own = getattr(advanced, name), getattr(initial_adapter, name)
        if asked not in (None, own):
            raise InvalidInput(
                "adapter_shape_is_fixed",
                f"{name} should be the earlier adapter's {own}, or left out; it is {asked}",
                param=f"appliance.advanced.{name}",
                next_step="leave it out, or start from the base model",
            )


def _override(chosen: Hyperparameters, advanced: Advanced) -> Hyperparameters:
    given = {
        name: value
        for name in advanced.__struct_fields__
        if (value := getattr(advanced, name)) is not None
    }
    return msgspec.structs.replace(chosen, **given)


def _auto_epochs(rows: int) -> int:
    return max(1, min(5, round(EXAMPLES_SEEN / rows)))


def _auto_batch(rows: int) -> int:
    batch = 1
    while batch < MAX_AUTO_BATCH and rows // (batch * 2) >= STEPS_PER_EPOCH:
        batch *= 2
    return batch
