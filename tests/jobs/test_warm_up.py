"""A few steps of a real training, with everything given back afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from pathlib import Path

import pytest

from appliance import process
from appliance.datasets import chat_rows
from appliance.errors import Busy, ChildFailed, InvalidInput, NoMemory, NotFound
from appliance.hardware import profiles
from appliance.hardware.device import Disk
from appliance.hardware.fit.machine import GIB, Machine
from appliance.hardware.lease import Ledger
from appliance.hardware.sensors import Sensors
from appliance.hardware.telemetry import Reading
from appliance.jobs import estimate, scratch, warm_up
from appliance.jobs.request import FineTuningRequest
from appliance.settings import CHECKOUT
from appliance.store.store import Store
from tests.daemon_process import BASE, add_base, rows
from tests.fakes import PROGRAMS
from tests.hardware.fit.test_shapes import LLAMA

PROFILE = profiles.load_all(CHECKOUT / "firmware_profiles")["cpu"]
DISK = Disk(total_bytes=100 * GIB, free_bytes=50 * GIB)


@pytest.fixture(autouse=True)
def _children_find_the_fakes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))


@pytest.fixture
def store(state_dir):
    add_base(state_dir)
    config = state_dir / "base_models" / BASE / "hf" / "config.json"
    config.write_text(json.dumps({**LLAMA, "dtype": "bfloat16"}))
    opened = Store(state_dir)
    yield opened
    opened.close()


@pytest.fixture
def ledger(state_dir):
    return Ledger(state_dir / "leases", 8 * GIB)


@pytest.fixture
def look(store):
    """`look(behaviour)`: what fits for a file of twelve rows."""

    def through(behaviour: str = "", *, gib: float = 8.0, model: str = BASE, **wrong: str):
        file = store.files.add(
            io.BytesIO(rows(behaviour)),
            filename="train.jsonl",
            purpose=wrong.get("purpose", "fine-tune"),
            limit_bytes=1 << 20,
            check=chat_rows.check_file,
        )
        size = round(gib * GIB)
        where = Machine(family="cpu", device_bytes=size, host_bytes=size, bfloat16=True)
        request = FineTuningRequest(model=model, training_file=wrong.get("file", file.id))
        return estimate.make(store, PROFILE, where, DISK, [], request)

    return through


@pytest.fixture
def measure(store, settings, ledger, look):
    """`measure(behaviour, steps, read)`: the warm-up, and the lines that the child told.

    `read` is given those that were told until then.
    """

    def through(behaviour: str = "", steps: int = 4, read=lambda told: []):
        told = []
        found = asyncio.run(
            warm_up.measure(
                store,
                settings,
                PROGRAMS,
                ledger,
                Sensors(lambda: read(told)),
                look(behaviour),
                steps,
                told.extend,
            )
        )
        return found, told

    return through


def open_files_of_children(directory):
    """Files below `directory` that processes of this test's own have open."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found += [str(each.readlink()) for each in (stat.parent / "fd").iterdir()]
    return [each for each in found if each.startswith(str(directory))]


def leftovers(store):
    return [path for path in store.temporary_directory.iterdir() if path.is_dir()]


def test_so_many_steps_are_made_and_nothing_is_left(measure, store, ledger, state_dir):
    found, told = measure(steps=3)
    assert [line.key for line in told] == ["step:1", "step:2", "step:3", "validation:3"]
    assert (found.pace.warm_steps, found.pace.validation_seconds) == (2, 2.0)
    assert found.planned_validations == 3
    assert found.pace.tokens_per_second == 100
    assert (found.pace.cold_seconds, found.pace.cold_tokens) == (11.0, 100)
    assert found.planned_tokens % 5 == 0
    assert found.watts is None
    assert leftovers(store) == []
    assert ledger.holdings() == []
    assert list((state_dir / "jobs").iterdir()) == []


def test_lease_is_held_as_a_training_while_it_lasts(measure, ledger, look, store):
    seen, ledger_directory = [], store.directory / "leases"
    descriptors = []

    def read(_told):
        seen.extend(ledger.holdings())
        descriptors.extend(open_files_of_children(ledger_directory))
        return []

    measure("slow", 8, read=read)
    # It is the child's, too: it lasts as long as the memory is in use.
    assert any(each.endswith(".lease") for each in descriptors)
    assert {(each.holder, each.purpose, each.bytes) for each in seen} == {
        ("warm-up", "training", look("slow").plan.training_bytes)
    }


@pytest.fixture(autouse=True)
def _polls_are_frequent(monkeypatch):
    monkeypatch.setattr(process, "STALL_POLL_SECONDS", 0.05)


def test_power_is_the_mean_of_what_was_told(measure):
    watts = iter([100.0, 300.0] + [None] * 1000)

    told_before = []

    def read(told):
        told_before.append(len(told))
        return [Reading(device="gpu0", name="a GPU", power_watts=next(watts))]

    assert measure("slow", 12, read=read)[0].watts == 200.0
    # Loading a model is no training.
    assert min(told_before) > 0


def test_warm_up_waits_for_nobody(measure, ledger, store):
    with ledger.grant("ftjob-1", "training", ledger.capacity_bytes), pytest.raises(NoMemory):
        measure()
    assert leftovers(store) == []
    with ledger.grant("ftjob-1", "release", 10):
        found, _ = measure()
    assert [(each.holder, each.purpose) for each in found.beside] == [("ftjob-1", "release")]
    with ledger.grant("a-model", "serving", 10):
        assert measure()[0].beside == ()


def test_second_warm_up_is_told_to_wait(measure, store):
    with (
        scratch.one_at_a_time(store, warm_up.HOLDER),
        pytest.raises(Busy, match="another warm-up"),
    ):
        measure()


@pytest.mark.parametrize(
    ("behaviour", "code"), [("refuse", "fake_refusal"), ("exit", "child_died")]
)
def test_child_that_fails_is_told_and_leaves_nothing(measure, store, ledger, behaviour, code):
    with pytest.raises(ChildFailed) as caught:
        measure(behaviour)
    assert caught.value.code == code
    assert leftovers(store) == []
    assert ledger.holdings() == []


def test_one_step_is_no_measurement(measure):
    with pytest.raises(ChildFailed, match="reported 1"):
        measure(steps=1)


def test_plan_is_that_of_a_job(look):
    found = look()
    assert found.plan.technique == "qlora"
    assert found.max_length == 1024
    assert found.plan.training_bytes > 0
    assert found.refused is None
    assert found.needs.release_disk.available_bytes == 50 * GIB
    assert [(each.file.quantization, each.file.predicted) for each in found.needs.serving] == [
        ("Q4_K_M", False),
        ("Q8_0", True),
    ]


def test_job_that_would_be_refused_still_has_its_table(look):
    found = look(gib=0.6)
    assert "does" not in found.plan.base_model
    assert "this device has 0.60 GiB" in found.refused
    assert not any(each.room.fits for each in found.needs.training)


def test_unknown_family_has_no_numbers_and_is_no_refusal(look, store):
    (store.base_models_directory / BASE / "hf" / "config.json").write_text("{}")
    found = look()
    assert (found.needs, found.refused) == (None, None)
    assert "cannot be told" in found.memory


@pytest.mark.parametrize(
    ("wrong", "error", "code"),
    [
        ({"model": "none"}, NotFound, "model_not_found"),
        ({"file": "file-none"}, InvalidInput, "invalid_file"),
        ({"purpose": "user_data"}, InvalidInput, "invalid_file_purpose"),
    ],
)
def test_what_is_not_there_is_told(look, wrong, error, code):
    with pytest.raises(error) as caught:
        look(**wrong)
    assert caught.value.code == code
