"""Whole runs of the real child process on a tiny model."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import process
from appliance.training.rows import LISTED_LINES
from tests.children import reported, run_child
from tests.training.conftest import row, write_rows

pytestmark = [pytest.mark.torch, pytest.mark.slow]

Spec = Callable[..., dict[str, Any]]
MODULE = "appliance.training"


def result_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_bytes())


def error_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "error.json").read_bytes())


def test_a_run_learns_reports_and_leaves_an_adapter(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, job = tmp_path / "home", tmp_path / "job"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    done = run_child(MODULE, job, spec(num_train_epochs=2))
    assert done.returncode == 0, done.stderr

    lines = reported(job)
    steps = [line for line in lines if line["key"].startswith("step:")]
    # 54 rows, 5 of them held out, 4 a step: 13 steps an epoch.
    assert [line["data"]["step"] for line in steps] == list(range(1, 27))
    assert steps[9]["message"] == f"Step 10/26: training loss={steps[9]['data']['train_loss']:.4f}"
    assert steps[-1]["eta_seconds"] == 0
    assert steps[-1]["data"]["train_loss"] < 0.7 * steps[0]["data"]["train_loss"]
    validations = [line["data"] for line in lines if line["key"].startswith("validation:")]
    assert [v["step"] for v in validations] == [7, 13, 20, 26]
    assert validations[-1]["valid_loss"] < validations[0]["valid_loss"]
    assert any("5 of 54 rows are held out" in line["message"] for line in lines)

    result = result_of(job)
    assert (result["steps"], result["epochs"]) == (26, 2.0)
    assert result["trained_tokens"] == steps[-1]["data"]["tokens"]
    assert result["validation_loss"] == validations[-1]["valid_loss"]
    assert result["end_of_turn_token_id"] == 2
    assert sorted(path.name for path in (job / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [path.name for path in (job / "checkpoints").iterdir()] == ["checkpoint-26"]
    assert not list(home.iterdir())
    written = {path.suffix for path in job.rglob("*") if path.is_file()}
    assert written == {"", ".json", ".jsonl", ".safetensors"}


def test_an_adapter_is_trained_further_with_its_own_rank(
    spec: Spec, lora_run: Path, tmp_path: Path
) -> None:
    further = spec(
        technique="lora",
        r=16,
        initial_adapter_directory=str(lora_run / "adapter"),
        lora_dropout=0.0,
        # A rate near zero: what the run starts from is what it ends with.
        learning_rate=1e-12,
    )
    done = run_child(MODULE, tmp_path, further)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert config["r"] == 4
    assert result_of(tmp_path)["validation_loss"] == pytest.approx(
        result_of(lora_run)["validation_loss"], rel=0.02
    )


def test_a_validation_file_is_used_as_it_is(spec: Spec, tmp_path: Path) -> None:
    validation = write_rows(tmp_path / "v.jsonl", *[row(("user", "a"), ("assistant", "b"))] * 70)
    job = tmp_path / "job"
    done = run_child(MODULE, job, spec(validation_file=str(validation), validation_fraction=0.5))
    assert done.returncode == 0, done.stderr
    assert any("64 of 70 validation rows" in line["message"] for line in reported(job))
    assert result_of(job)["steps"] == 14


def test_rows_that_are_too_long_end_the_run_with_their_lines(spec: Spec, tmp_path: Path) -> None:
    done = run_child(MODULE, tmp_path, spec(max_length=10))
    assert done.returncode == 1
    error = error_of(tmp_path)
    assert error["code"] == "rows_too_long"
    assert error["message"].count("line ") == LISTED_LINES
    assert "Traceback" not in done.stderr


def test_a_base_without_weights_is_refused(spec: Spec, tiny: Path, tmp_path: Path) -> None:
    base = copy_of(tiny, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"no tensors")
    done = run_child(MODULE, tmp_path / "job", spec(base_directory=str(base)))
    assert error_of(tmp_path / "job")["code"] == "unusable_base_model"
    assert "Traceback" not in done.stderr


def test_a_base_that_lacks_a_tensor_is_refused(spec: Spec, tiny: Path, tmp_path: Path) -> None:
    import safetensors.torch

    base = copy_of(tiny, tmp_path / "base")
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, base / "model.safetensors", {"format": "pt"})
    run_child(MODULE, tmp_path / "job", spec(base_directory=str(base)))
    assert error_of(tmp_path / "job")["code"] == "unusable_base_model"
    assert "up_proj" in error_of(tmp_path / "job")["message"]


@pytest.mark.parametrize("harm", ["missing", "torn", "incomplete"])
def test_an_adapter_that_does_not_fit_is_refused(
    spec: Spec, lora_run: Path, tmp_path: Path, harm: str
) -> None:
    import safetensors.torch

    adapter = copy_of(lora_run / "adapter", tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    if harm == "missing":
        weights.unlink()
    elif harm == "torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        tensors = safetensors.torch.load_file(weights)
        del tensors[sorted(tensors)[0]]
        safetensors.torch.save_file(tensors, weights)
    done = run_child(MODULE, tmp_path / "job", spec(initial_adapter_directory=str(adapter)))
    assert error_of(tmp_path / "job")["code"] == "unusable_adapter"
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_in_words(spec: Spec, tmp_path: Path) -> None:
    # The kernel refuses to let any file grow beyond 20 KiB: enough for reports, not for a checkpoint.
    (tmp_path / "spec.json").write_text(json.dumps(spec()))
    done = subprocess.run(
        process.python_child(MODULE, str(tmp_path)),
        capture_output=True,
        text=True,
        env={**os.environ, **process.OFFLINE_ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_480, 20_480)),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert error_of(tmp_path)["code"] == "out_of_disk"
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_diverging_run_stops(spec: Spec, tmp_path: Path) -> None:
    run_child(MODULE, tmp_path, spec(learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0))
    assert error_of(tmp_path)["code"] == "training_diverged"


def test_a_run_that_is_cut_short_makes_so_many_steps_and_counts_the_whole(
    spec: Spec, tmp_path: Path
) -> None:
    whole, short = tmp_path / "whole", tmp_path / "short"
    assert run_child(MODULE, whole, spec(num_train_epochs=2)).returncode == 0
    done = run_child(MODULE, short, {**spec(num_train_epochs=2), "max_steps": 3})
    assert done.returncode == 0, done.stderr

    lines = reported(short)
    steps = [line["data"] for line in lines if line["key"].startswith("step:")]
    assert [each["step"] for each in steps] == [1, 2, 3]
    assert [each["seconds"] for each in steps] == sorted(each["seconds"] for each in steps)
    # Once, at the end: validation in between would be measured as training.
    validations = [line["data"] for line in lines if line["key"].startswith("validation:")]
    assert [each["step"] for each in validations] == [3]
    assert validations[0]["seconds"] > steps[-1]["seconds"]

    result, full = result_of(short), result_of(whole)
    assert result["steps"] == 3
    assert result["trained_tokens"] == steps[-1]["tokens"] < full["trained_tokens"]
    assert result["planned_tokens"] == full["planned_tokens"] == full["trained_tokens"]
    made = [line for line in reported(whole) if line["key"].startswith("validation:")]
    assert result["planned_validations"] == full["planned_validations"] == len(made)


def copy_of(source: Path, destination: Path) -> Path:
    destination.mkdir()
    for path in source.iterdir():
        (destination / path.name).write_bytes(path.read_bytes())
    return destination
