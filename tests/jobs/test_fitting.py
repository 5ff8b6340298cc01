"""A job fits before it is accepted, or is refused with both numbers and a change that really does fit."""

from __future__ import annotations

import json
import re
import time

import msgspec
import pytest

from appliance.errors import InvalidInput
from appliance.hardware import profiles, stored_base
from appliance.hardware.fit.machine import GIB, Machine
from appliance.jobs import fitting, plan
from appliance.jobs.request import FineTuningRequest
from appliance.records import StoredFile
from appliance.settings import CHECKOUT
from tests.daemon_process import BASE
from tests.hardware.fit.test_shapes import LLAMA
from tests.jobs.test_plan import BASE as RECORD

PROFILE = profiles.load_all(CHECKOUT / "firmware_profiles")["cpu"]
CONFIG = {**LLAMA}
LARGE = {
    **CONFIG,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
}


def stored(longest: int | None = 3000, size: int = 100_000) -> StoredFile:
    return StoredFile(
        id="f",
        created_at=1,
        filename="f",
        purpose="fine-tune",
        bytes=size,
        sha256="0",
        rows=100,
        longest_row_bytes=longest,
    )


def facts(tmp_path, config):
    (tmp_path / RECORD.directory / "hf").mkdir(parents=True, exist_ok=True)
    (tmp_path / RECORD.directory / "hf" / "config.json").write_text(
        config if isinstance(config, str) else json.dumps(config)
    )
    return stored_base.read(tmp_path / RECORD.directory / "hf")


def machine(gib: float, host_gib: float | None) -> Machine:
    """A CPU, or with `host_gib` a card."""
    family, host = ("cpu", gib) if host_gib is None else ("discrete", host_gib)
    return Machine(
        family=family,
        device_bytes=round(gib * GIB),
        host_bytes=round(host * GIB),
        bfloat16=True,
    )


def fit(
    tmp_path,
    gib: float,
    config=CONFIG,
    longest=3000,
    serving_gib=0.0,
    host_gib=None,
    **options: object,
):
    request = msgspec.convert(
        {"model": "m", "training_file": "f", "appliance": options}, FineTuningRequest
    )
    chosen = plan.make(request, PROFILE, base=RECORD, initial_adapter=None, rows=1000)
    data = fitting.data_facts([stored(longest)], chosen.hyperparameters.max_length)
    base, serving_bytes = facts(tmp_path, config), round(serving_gib * GIB)
    return fitting.fit(
        chosen, request.appliance.advanced, base, data, machine(gib, host_gib), serving_bytes, 4096
    )


def test_micro_batch_follows_the_memory(tmp_path):
    sizes = {}
    for gib in (1.8, 2.4, 16):
        fitted, message = fit(tmp_path, gib)
        chosen = fitted.hyperparameters
        sizes[gib] = chosen.per_device_train_batch_size
        assert chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps == 16
        assert fitted.training_bytes <= gib * GIB
        assert f"{fitted.training_bytes / GIB:.2f} of {gib:.2f}" in message.replace(" GiB", "")
    assert sizes == {1.8: 1, 2.4: 2, 16: 4}


def test_micro_batch_that_was_asked_for_is_left_alone_or_refused(tmp_path):
    asked = {"advanced": {"per_device_train_batch_size": 4}}
    assert fit(tmp_path, 16, **asked)[0].hyperparameters.per_device_train_batch_size == 4
    with pytest.raises(InvalidInput) as caught:
        fit(tmp_path, 1.8, **asked)
    assert caught.value.code == "does_not_fit"
    assert re.search(r"needs \d\.\d\d GiB.*this device has 1\.80 GiB", caught.value.message)
    assert "per_device_train_batch_size 1" in caught.value.next_step


def test_named_change_is_accepted_as_it_is_named(tmp_path):
    options = {"technique": "lora", "advanced": {"per_device_train_batch_size": 8}}
    for _ in range(2):
        try:
            fit(tmp_path, 1.2, **options)
            break
        except InvalidInput as exc:
            for name, value in re.findall(r"appliance\.([\w.]+) (\w+)", exc.next_step):
                group, _, leaf = name.rpartition(".")
                target = options.setdefault(group, {}) if group else options
                target[leaf] = int(value) if value.isdecimal() else value
    else:
        pytest.fail(f"{options} should fit")
    assert options["advanced"]["max_length"] < 1024


def test_model_that_is_too_large_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(InvalidInput, match="GiB of memory; this device has 4") as caught:
        fit(tmp_path, 4, LARGE)
    assert caught.value.param == "model"
    assert "smaller base model" in caught.value.next_step


def test_release_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="the release needs"):
        fit(tmp_path, 80, LARGE, longest=70, host_gib=1, advanced={"max_length": 128})


def test_short_rows_need_less(tmp_path):
    short, long = (fit(tmp_path, 16, longest=each)[0].training_bytes for each in (100, 3000))
    assert short < long


@pytest.mark.parametrize("config", ["", "[1]", "{", '{"model_type": "gemma3"}', "[" * 100_000])
def test_what_cannot_be_told_is_said_and_nothing_is_refused(tmp_path, config):
    fitted, message = fit(tmp_path, 0.001, config)
    assert "cannot be told" in message
    assert fitted.training_bytes is None


def test_files_without_a_longest_row_count_as_long_as_is_allowed():
    assert fitting.data_facts([stored(None)], 512).longest_row_tokens == 512
    assert fitting.data_facts([stored(100), stored(200)], 512).longest_row_tokens == 264
    assert fitting.data_facts([stored(100, 5), stored(100, 6)], 512).bytes == 11


def test_job_over_budget_is_refused_at_once_and_leaves_nothing(daemon):
    directory = daemon.state_dir / "base_models" / BASE / "hf"
    (directory / "config.json").write_text(json.dumps(LARGE))
    row = {"messages": [{"role": r, "content": "x" * 2000} for r in ("user", "assistant")]}
    file = daemon.upload("".join(json.dumps(row) + "\n" for _ in range(20)).encode())
    body = {"model": BASE, "training_file": file["id"]}
    started_at = time.monotonic()
    answer = daemon.http.post("/v1/fine_tuning/jobs", json=body)
    print(f"refused in {time.monotonic() - started_at:.3f} s")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "does_not_fit"
    assert daemon.http.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert not list((daemon.state_dir / "jobs").iterdir())
    (directory / "config.json").write_text(json.dumps(CONFIG))
    job = daemon.http.post("/v1/fine_tuning/jobs", json=body).json()
    assert job["appliance"]["plan"]["training_bytes"] > 0


def test_result_that_cannot_be_served_is_not_trained(tmp_path):
    # One row of a base with a large cache: the training of its small body fits, its context does not.
    wide = {**CONFIG, "num_key_value_heads": 9, "num_hidden_layers": 30, "vocab_size": 64}
    options = {"advanced": {"per_device_train_batch_size": 1, "max_length": 64}}
    request = msgspec.convert(
        {"model": "m", "training_file": "f", "appliance": options}, FineTuningRequest
    )
    chosen = plan.make(request, PROFILE, base=RECORD, initial_adapter=None, rows=1000)
    data = fitting.data_facts([stored(50)], 64)
    arguments = (
        chosen,
        request.appliance.advanced,
        facts(tmp_path, wide),
        data,
        machine(2, None),
        0,
    )
    assert fitting.fit(*arguments, 4096)[0].training_bytes
    with pytest.raises(InvalidInput, match="serving the result as Q4_K_M needs") as caught:
        fitting.fit(*arguments, 1 << 17)
    assert (caught.value.code, caught.value.param) == ("does_not_fit", "appliance.quantizations")


def test_model_is_judged_whatever_its_configuration_says_of_its_format(tmp_path):
    plain, named = (
        fit(tmp_path, 16, {**LLAMA, **more})[0].training_bytes
        for more in ({}, {"torch_dtype": "float16"})
    )
    assert plain == named is not None
