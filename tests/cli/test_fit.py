"""`appliance fit` as people call it, with the fake training child; no daemon runs."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from appliance import cli, daemon
from appliance.datasets import chat_rows
from appliance.hardware.lease import Ledger
from appliance.settings import CHECKOUT
from appliance.store.store import Store
from tests.daemon_process import BASE, add_base, rows
from tests.fakes import PROGRAMS
from tests.hardware.fit.test_shapes import LLAMA

PRICES = (
    *("--electricity-price-per-kwh", "0.25", "--api-training-price-per-million", "1000000"),
    *("--hardware-price", "100000", "--watts", "3600"),
)


@pytest.fixture
def config(state_dir):
    """The base model's configuration, which its memory follows from."""
    add_base(state_dir)
    path = state_dir / "base_models" / BASE / "hf" / "config.json"
    path.write_text(json.dumps({**LLAMA, "dtype": "bfloat16"}))
    return path


@pytest.fixture
def upload(config, state_dir):
    """`upload(behaviour)`: store a file of training rows; its id."""

    def through(behaviour: str = "", purpose: str = "fine-tune", count: int = 12) -> str:
        store = Store(state_dir)
        try:
            return store.files.add(
                io.BytesIO(rows(behaviour, count)),
                filename="train.jsonl",
                purpose=purpose,
                limit_bytes=1 << 20,
                check=chat_rows.check_file,
            ).id
        finally:
            store.close()

    return through


@pytest.fixture
def fit(state_dir, monkeypatch, capsys):
    """`fit(*arguments)`: exit status, standard output, and the error's line."""
    monkeypatch.setattr(daemon, "PROGRAMS", PROGRAMS)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("APPLIANCE_STATE_DIR", str(state_dir))
    monkeypatch.setenv("APPLIANCE_CONFIG", os.devnull)
    monkeypatch.setenv("APPLIANCE_PROFILE_OVERRIDE_FILE", os.devnull)
    monkeypatch.setenv("APPLIANCE_PROFILE", "cpu")

    def through(dataset: str, *arguments: str, base: str = BASE) -> tuple[int, str, str]:
        given = ["appliance", "fit", "--base", base, "--dataset", dataset, *arguments]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        status, line = (1, code) if isinstance(code, str) else (int(code or 0), "")
        return status, capsys.readouterr().out, line

    return through


@pytest.fixture
def told(fit):
    """`told(*arguments)`: the result as JSON."""

    def through(*arguments: str, status: int = 0, **options: str):
        found = fit(*arguments, "--json", "-", **options)
        assert found[0] == status, found
        return json.loads(found[1])

    return through


def test_everything_is_told_in_numbers(told, upload):
    found = told(upload(), *PRICES)
    needs = found["estimate"]["needs"]
    assert {row["technique"] for row in needs["training"]} == {"qlora", "lora"}
    for row in (*needs["training"], *needs["serving"]):
        room = row["room"]
        assert room["margin_bytes"] == room["available_bytes"] - room["needed_bytes"]
    # Its file in 4 bits, and the adapter alone.
    assert 105e6 < needs["release_disk"]["needed_bytes"] < 400e6
    # The fake makes 100 tokens a second, after a cold step of 11 s; three validations take 2 s each.
    assert found["warm_up"]["pace"]["tokens_per_second"] == 100
    tokens = found["run"]["tokens"]
    assert tokens == found["warm_up"]["planned_tokens"] > 1000
    assert found["run"]["seconds"] == pytest.approx(11 + (tokens - 100) / 100 + 6)
    assert found["run"]["watts"] == 3600
    assert found["cost"]["electricity_per_run"] == pytest.approx(
        found["run"]["seconds"] / 1000 * 0.25
    )
    saved = tokens - found["cost"]["electricity_per_run"]
    assert found["cost"]["saved_per_run"] == pytest.approx(saved)
    assert found["cost"]["runs_until_paid"] == -(-100_000 // saved)
    assert found["no_warm_up"] is None


def test_text_is_readable_at_80_columns(fit, upload):
    status, text, _ = fit(upload(), *PRICES)
    assert status == 0
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for word in (
        *("qlora", "lora", "micro-batch", "Q4_K_M", "Q8_0 (predicted)", "free disk", "(the data)"),
        *(
            "100 tokens/s",
            "release after it not included",
            "3600.0 W, as entered",
            "is paid after",
        ),
    ):
        assert word in text, word


def test_rows_that_may_be_too_long_are_said_to_be_refused(fit, upload, tmp_path, monkeypatch):
    changes = tmp_path / "mine.toml"
    changes.write_text("max_length = 80")
    file = upload()
    _, text, _ = fit(file)
    assert "(the data)" in text
    assert "refuses rows" not in text
    monkeypatch.setenv("APPLIANCE_PROFILE_OVERRIDE_FILE", str(changes))
    _, text, _ = fit(file)
    assert "80 (the limit)" in text
    assert "(the data)" not in text
    assert "refuses rows of more than 80 tokens" in " ".join(text.split())


def test_state_directory_is_not_made(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("APPLIANCE_STATE_DIR", str(tmp_path / "typo"))
    status, _, line = fit("file-none")
    assert (status, "no_state" in line) == (1, True)
    assert not (tmp_path / "typo").exists()


def test_nothing_is_changed(told, upload, state_dir):
    def content():
        """Without locks, and leases that are void: the next one who looks removes them."""
        paths = (path for path in state_dir.rglob("*") if "leases" not in path.parts)
        return sorted(path for path in paths if path.suffix != ".lock")

    file = upload()
    before = content()
    told(file)
    assert content() == before


def test_without_a_warm_up_there_is_no_time_and_no_cost(told, fit, upload):
    file = upload()
    found = told(file, "--no-warm-up", *PRICES)
    assert (found["run"], found["cost"], found["warm_up"]) == (None, None, None)
    assert found["estimate"]["needs"]["training"]
    assert "not told: --no-warm-up was given" in fit(file, "--no-warm-up")[1]


def test_number_of_steps_can_be_chosen(told, upload):
    assert told(upload("slow"), "--warm-up-steps", "7")["warm_up"]["pace"]["warm_steps"] == 6


def test_fine_tuned_model_is_gone_on_from_as_its_job_would(daemon, told):
    first = daemon.wait_for_job(daemon.create_job()["id"], "succeeded")
    (daemon.state_dir / "base_models" / BASE / "hf" / "config.json").write_text(json.dumps(LLAMA))
    estimate = told(first["training_file"], base=first["fine_tuned_model"])["estimate"]
    job = daemon.create_job(model=first["fine_tuned_model"])
    assert estimate["plan"] == job["appliance"]["plan"]
    assert estimate["plan"]["initial_adapter"] == f"jobs/{first['id']}/training/adapter"
    assert [row["file"] for row in estimate["needs"]["serving"]]


def test_training_that_holds_the_memory_is_named(fit, upload, state_dir):
    file = upload()
    ledger = Ledger(state_dir / "leases", 1 << 60)
    with ledger.grant("ftjob-7", "training", 1 << 59):
        status, text, _ = fit(file)
    assert status == 0
    assert "the rest is held by ftjob-7" in " ".join(text.split())
    assert "held now" in text


def test_child_that_fails_is_exit_status_one_below_the_table(fit, upload):
    status, text, _ = fit(upload("refuse"))
    assert status == 1
    assert "expected better rows, found these" in text
    assert "Serving" in text


def test_energy_without_a_power_is_said_to_be_missing(fit, upload, monkeypatch):
    monkeypatch.setattr("appliance.hardware.telemetry.read", list)
    text = fit(upload(), "--api-training-price-per-million", "3", "--hardware-price", "1")[1]
    assert "the device tells no power, and there is no --watts" in text
    assert "kWh" not in text
    assert "at the API" in text
    assert "is paid" not in text


def test_family_that_is_not_known_is_said_plainly(fit, upload, config):
    file = upload()
    config.write_text("{}")
    status, text, _ = fit(file)
    assert status == 0
    assert "cannot be told" in text
    assert "100 tokens/s" in text


def test_flags_win_over_the_price_file(told, upload, tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text("watts = 50\nelectricity_price_per_kwh = 2\n")
    prices = told(upload(), "--price-file", str(path), "--watts", "70")["prices"]
    assert (prices["watts"], prices["electricity_price_per_kwh"]) == (70, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("watts = -1\ncoffee = 2\n", ("watts", "coffee: there is no such price")),
        ("watts = nan\n", ("watts: Expected",)),
        ("watts = inf\n", ("watts",)),
        ('watts = "many"\n', ("watts",)),
        ("watts", ("should be a TOML file",)),
    ],
)
def test_prices_that_are_none_are_refused_all_at_once(fit, upload, tmp_path, content, words):
    path = tmp_path / "prices.toml"
    path.write_text(content)
    status, _, line = fit(upload(), "--price-file", str(path))
    assert (status, "invalid_prices" in line) == (1, True)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("file", "options", "code"),
    [
        ({}, {"base": "none"}, "model_not_found"),
        (None, {}, "invalid_file"),
        ({"purpose": "user_data"}, {}, "invalid_file_purpose"),
        ({"count": 3}, {}, "too_few_rows"),
    ],
)
def test_refusal_is_one_line(fit, upload, file, options, code):
    dataset = "file-none" if file is None else upload(**file)
    status, _, line = fit(dataset, **options)
    assert status == 1
    assert line.startswith(f"appliance: {code}: ")
