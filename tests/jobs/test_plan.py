"""A plan leaves nothing open, whatever was left to us."""

from __future__ import annotations

import msgspec
import pytest

from appliance.errors import InvalidInput
from appliance.hardware import profiles
from appliance.jobs import plan
from appliance.jobs.request import FineTuningRequest
from appliance.records import BaseModel
from appliance.settings import CHECKOUT

PROFILE = profiles.load_all(CHECKOUT / "firmware_profiles")["cpu"]


BASE = BaseModel(
    name="m",
    created_at=1,
    architecture="FakeForCausalLM",
    parameters=1,
    context_length=8192,
    licence="mit",
    source="a test",
    sha256="0" * 64,
    directory="base_models/m",
    files=(),
)


def make(rows: int = 1000, base=BASE, initial_adapter=None, **body: object):
    request = msgspec.convert({"model": "m", "training_file": "f", **body}, FineTuningRequest)
    return plan.make(request, PROFILE, base=base, initial_adapter=initial_adapter, rows=rows)


def hyperparameters(**values: object) -> dict[str, object]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": values}}}


# rows: epochs, effective batch
AUTO = [
    (10, 5, 1),
    (79, 5, 1),
    (80, 5, 2),
    (300, 5, 4),
    (700, 2, 16),
    (1000, 2, 16),
    (5000, 1, 16),
    (10**9, 1, 16),
]


@pytest.mark.parametrize(("rows", "epochs", "batch"), AUTO)
def test_auto_follows_the_number_of_rows(rows, epochs, batch):
    chosen = make(rows).hyperparameters
    assert chosen.num_train_epochs == epochs
    assert chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps == batch


@pytest.mark.parametrize("asked", [1, 3, 8, 9, 100, 256])
def test_batch_that_was_asked_for_is_never_made_smaller(asked):
    chosen = make(**hyperparameters(batch_size=asked)).hyperparameters
    effective = chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps
    assert asked <= effective < asked + chosen.per_device_train_batch_size
    assert chosen.per_device_train_batch_size <= PROFILE.per_device_train_batch_size


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 32])
def test_effective_batch_follows_the_micro_batch_by_rounding_up_only(micro_batch):
    advanced = {"per_device_train_batch_size": micro_batch}
    chosen = make(**hyperparameters(batch_size=8), appliance={"advanced": advanced}).hyperparameters
    assert chosen.per_device_train_batch_size == micro_batch
    effective = chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps
    assert 8 <= effective < 8 + micro_batch


def test_multiplier_scales_the_learning_rate():
    plain = make().hyperparameters.learning_rate
    chosen = make(**hyperparameters(learning_rate_multiplier=2)).hyperparameters
    assert chosen.learning_rate == pytest.approx(2 * plain)


def test_older_place_of_hyperparameters_means_the_same():
    assert make(hyperparameters={"n_epochs": 7}) == make(**hyperparameters(n_epochs=7))
    assert make(hyperparameters={"n_epochs": 7}).hyperparameters.num_train_epochs == 7


def test_advanced_settings_win_over_all_others():
    advanced = {
        "learning_rate": 0.5,
        "num_train_epochs": 11,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 5,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.5,
        "weight_decay": 0.25,
        "max_grad_norm": 0.0,
        "max_length": 77,
        "r": 3,
        "lora_alpha": 9,
        "lora_dropout": 0.5,
    }
    body = hyperparameters(n_epochs=2, batch_size=64)
    chosen = make(**body, appliance={"advanced": advanced}).hyperparameters
    assert msgspec.to_builtins(chosen) == advanced


def test_appliance_options_win_over_the_profile():
    options = {"technique": "lora", "quantizations": ["Q8_0"], "validation_fraction": 0}
    made = make(appliance=options)
    assert (made.technique, made.quantizations, made.validation_fraction) == ("lora", ("Q8_0",), 0)
    assert make().technique == PROFILE.technique
    assert make().quantizations == PROFILE.quantizations


@pytest.mark.parametrize("rows", [0, 1, plan.MIN_ROWS - 1])
def test_too_few_rows_are_refused_with_both_numbers(rows):
    with pytest.raises(InvalidInput) as caught:
        make(rows)
    assert str(rows) in caught.value.message
    assert str(plan.MIN_ROWS) in caught.value.message
    assert caught.value.param == "training_file"


def test_plan_survives_the_database():
    made = make()
    assert msgspec.convert(msgspec.to_builtins(made), type(made)) == made


def test_rows_are_never_longer_than_the_base_was_trained_with():
    short = msgspec.structs.replace(BASE, context_length=512)
    assert make(base=short).hyperparameters.max_length == 512
    assert make().hyperparameters.max_length == PROFILE.max_length
    asked = {"appliance": {"advanced": {"max_length": 513}}}
    with pytest.raises(InvalidInput) as caught:
        make(base=short, **asked)
    assert caught.value.param == "appliance.advanced.max_length"
    assert make(**asked).hyperparameters.max_length == 513


def test_adapter_that_is_trained_further_keeps_its_shape():
    earlier = plan.InitialAdapter("jobs/j/training/adapter", r=8, lora_alpha=24)
    made = make(initial_adapter=earlier)
    assert made.initial_adapter == earlier.directory
    assert (made.hyperparameters.r, made.hyperparameters.lora_alpha) == (8, 24)
    same = {"appliance": {"advanced": {"r": 8}}}
    assert make(initial_adapter=earlier, **same).hyperparameters.r == 8


@pytest.mark.parametrize("name", ["r", "lora_alpha"])
def test_other_shape_for_an_adapter_that_is_trained_further_is_refused(name):
    earlier = plan.InitialAdapter("jobs/j/training/adapter", r=8, lora_alpha=24)
    with pytest.raises(InvalidInput) as caught:
        make(initial_adapter=earlier, appliance={"advanced": {name: 16}})
    assert caught.value.param == f"appliance.advanced.{name}"
