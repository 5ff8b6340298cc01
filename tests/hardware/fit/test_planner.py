"""What fits, with which micro-batch, and the change that costs least where it does not."""

from __future__ import annotations

import msgspec
import pytest

from appliance.hardware import catalogue
from appliance.hardware.fit import needs, planner
from appliance.hardware.fit.machine import GIB, Machine
from appliance.hardware.fit.needs import Data
from appliance.hardware.fit.planner import Setup
from appliance.records import Hyperparameters
from appliance.settings import CHECKOUT
from tests.hardware.fit.trainings import SHAPES

MODELS = catalogue.load(CHECKOUT / "firmware_profiles")
CHOSEN = Hyperparameters(
    num_train_epochs=1,
    learning_rate=2e-4,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    lr_scheduler_type="linear",
    warmup_ratio=0.05,
    weight_decay=0.0,
    max_grad_norm=1.0,
    max_length=1024,
    r=16,
    lora_alpha=32,
    lora_dropout=0.0,
)
SMALL, LARGE = "smollm2-135m-instruct", "llama-3.1-8b-instruct"


def machine(gib: float, family: str = "cpu", host_gib: float | None = None) -> Machine:
    return Machine(
        family=family,
        device_bytes=round(gib * GIB),
        host_bytes=round((host_gib or gib) * GIB),
        bfloat16=True,
    )


def setup(name: str = SMALL, *, technique: str = "qlora", longest: int = 1024, **values) -> Setup:
    return Setup(
        shape=MODELS[name].shape,
        technique=technique,
        hyperparameters=msgspec.structs.replace(CHOSEN, **values),
        data=Data(longest_row_tokens=longest, bytes=100_000),
    )


def needed(asked: Setup, where: Machine) -> int:
    return planner.verdict(asked, where).training_bytes


def test_dropout_keeps_a_mask_of_every_input():
    for name, family in ((SMALL, "cpu"), (LARGE, "discrete")):
        plain, dropped = (
            needed(setup(name, lora_dropout=rate), machine(1, family)) for rate in (0.0, 0.1)
        )
        assert dropped > 1.03 * plain


def test_edge_is_where_need_and_memory_are_equal():
    asked, ample = setup(), machine(100)
    exact = msgspec.structs.replace(ample, device_bytes=needed(asked, ample))
    assert planner.verdict(asked, exact).fits
    short = msgspec.structs.replace(exact, device_bytes=exact.device_bytes - 1)
    assert not planner.verdict(asked, short).fits


def test_release_counts_on_the_host():
    asked = setup(LARGE, longest=64)
    assert planner.verdict(asked, machine(24, "discrete", host_gib=4)).fits
    assert not planner.verdict(asked, machine(24, "discrete", host_gib=2)).fits
    # Its embeddings in 32 bits, and the process.
    found = planner.verdict(asked, machine(24, "discrete", host_gib=4)).release_bytes
    assert found == 128256 * 4096 * 4 + 260 * (1 << 20)


def test_micro_batch_is_halved_until_it_fits_and_the_step_is_kept():
    asked = setup(longest=1024)
    two_rows = needed(setup(per_device_train_batch_size=2), machine(1))
    fitted = planner.with_fitting_micro_batch(asked, machine(two_rows / GIB))
    assert fitted.hyperparameters.per_device_train_batch_size == 2
    assert fitted.hyperparameters.gradient_accumulation_steps == 8
    assert planner.with_fitting_micro_batch(asked, machine(100)) == asked


def test_odd_micro_batch_gives_no_smaller_step():
    asked = setup(per_device_train_batch_size=5, gradient_accumulation_steps=1)
    fitted = planner.with_fitting_micro_batch(asked, machine(0.1)).hyperparameters
    assert fitted.per_device_train_batch_size == 1
    assert fitted.gradient_accumulation_steps >= 5


def test_short_rows_need_less_than_what_is_allowed():
    assert needed(setup(longest=100), machine(1)) < needed(setup(longest=1024), machine(1))
    assert needed(setup(longest=5000), machine(1)) == needed(setup(longest=1024), machine(1))


# what is asked for, the memory it is to fit into, and what is changed
CHANGES = [
    ({}, {"per_device_train_batch_size": 1}, ["advanced.per_device_train_batch_size"]),
    (
        {"technique": "lora", "per_device_train_batch_size": 1},
        {"technique": "qlora", "per_device_train_batch_size": 1},
        ["technique"],
    ),
    (
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 1, "max_length": 256},
        ["advanced.max_length"],
    ),
    (
        {"per_device_train_batch_size": 1, "r": 1024},
        {"per_device_train_batch_size": 1, "r": 256},
        ["advanced.r"],
    ),
    (
        {"per_device_train_batch_size": 1, "r": 1024},
        {"per_device_train_batch_size": 1, "r": 8, "max_length": 128},
        ["advanced.r", "advanced.max_length"],
    ),
]


@pytest.mark.parametrize(("asked", "fitting", "changed"), CHANGES)
def test_nearest_change_fits_and_changes_no_more_than_it_must(asked, fitting, changed):
    # A base whose weights are large beside its activations, so that 4 bits matter.
    where = machine(
        needed(setup("llama-3.2-1b-instruct", **fitting), machine(1)) / GIB, host_gib=64
    )
    change = planner.nearest_change(setup("llama-3.2-1b-instruct", **asked), where)
    named = [name for name in change.values if "accumulation" not in name]
    assert named == changed
    assert change.verdict.fits
    assert planner.verdict(change.setup, where) == change.verdict


def test_nothing_helps_where_the_model_alone_is_too_large():
    assert planner.nearest_change(setup(LARGE), machine(2)) is None


def test_nothing_of_the_training_helps_where_the_release_does_not_fit():
    assert planner.nearest_change(setup(LARGE), machine(80, "discrete", host_gib=2)) is None


@pytest.mark.parametrize("family", ["discrete", "unified"])
def test_gpu_needs_grow_with_the_rows_and_shared_memory_holds_the_process_too(family):
    short, long = (needed(setup(LARGE, longest=each), machine(24, family)) for each in (64, 1024))
    assert short < long
    if family == "unified":
        assert short > needed(setup(LARGE, longest=64), machine(24, "discrete")) + (500 << 20)


def test_published_8b_qlora_fits_the_cards_it_is_said_to_fit():
    # Unsloth's requirements page: 6 GB for its own code, 10 and more for Hugging Face's.
    one_row = setup(LARGE, per_device_train_batch_size=1)
    assert planner.verdict(one_row, machine(9.5, "discrete", host_gib=64)).fits
    assert not planner.verdict(one_row, machine(5.5, "discrete", host_gib=64)).fits


@pytest.mark.parametrize(("family", "times"), [("cpu", 2), ("unified", 2), ("discrete", 1)])
def test_serving_counts_file_cache_shelf_and_engine(family, times):
    """The shelf is as large as the cache, and in the host's memory."""
    base = setup().shape
    short = needs.serving_bytes(base, 100, 512, "f16", family)
    assert needs.serving_bytes(base, 200, 512, "f16", family) == short + 100
    longer = needs.serving_bytes(base, 100, 4096, "f16", family) - short
    assert longer == times * 2 * 30 * 192 * (4096 - 512) * 2


# Measured peaks of the release child in MiB, without what it maps: the starter and random models with its
# vocabulary (tests/hardware/fit/trainings.py), base and adapter first, the base alone second.
RELEASES = [
    ("starter-135m", 321, 340),
    ("random-360m", 442, 635),
    ("random-1b", 644, 1041),
]


@pytest.mark.parametrize(("model", "measured_mib", "base_mib"), RELEASES)
def test_release_takes_what_was_measured(model, measured_mib, base_mib):
    predicted = needs.release_bytes(SHAPES[model]) / (1 << 20)
    assert 0.97 * measured_mib <= predicted <= 1.2 * measured_mib
    # The starter is in 32 bits, and nothing is made of them.
    most = 1.1 if model != "starter-135m" else 1.5
    assert 0.97 * base_mib <= needs.conversion_bytes(SHAPES[model]) / (1 << 20) <= most * base_mib


def test_release_does_not_grow_with_the_number_of_layers():
    shallow, deep = (
        msgspec.structs.replace(SHAPES["random-1b"], num_hidden_layers=layers) for layers in (8, 32)
    )
    assert needs.release_bytes(shallow) == needs.release_bytes(deep)
    assert needs.conversion_bytes(shallow) == needs.conversion_bytes(deep)


@pytest.mark.parametrize(("technique", "bytes_per_parameter"), [("qlora", 4 + 8), ("lora", 8 + 8)])
def test_adapter_on_a_gpu_is_in_16_bits_only_on_a_4_bit_base(technique, bytes_per_parameter):
    sizes = [
        needed(setup(LARGE, technique=technique, r=r), machine(1, "discrete")) for r in (16, 32)
    ]
    parameters = MODELS[LARGE].shape.adapter_parameters(16)
    # A process takes 1.15 of what is allocated.
    assert sizes[1] - sizes[0] == pytest.approx(1.15 * bytes_per_parameter * parameters, rel=1e-6)


def test_rank_of_an_adapter_that_is_trained_further_stays():
    asked = setup(per_device_train_batch_size=1, r=1024)
    where = machine(needed(setup(per_device_train_batch_size=1, r=256), machine(1)) / GIB)
    assert planner.nearest_change(asked, where).setup.hyperparameters.r == 256
    fixed = msgspec.structs.replace(asked, r_is_fixed=True)
    assert planner.nearest_change(fixed, where) is None


def test_no_more_accumulation_is_named_than_a_job_may_ask_for():
    asked = setup(per_device_train_batch_size=4, gradient_accumulation_steps=512)
    fitted = planner.with_fitting_micro_batch(asked, machine(0.1)).hyperparameters
    assert (fitted.per_device_train_batch_size, fitted.gradient_accumulation_steps) == (2, 1024)
