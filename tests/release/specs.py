"""Specs of the release child, and running it to a result or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance import durable
from appliance.batch import Failure
from appliance.child_records import ReleaseResult
from tests.children import run_child

NAME = "ft:tiny:local:-- a/b:é"


def base_spec(base: Path, converter: Path, **changes: Any) -> dict[str, Any]:
    """The base as it is."""
    return {
        "model_name": NAME,
        "base_directory": str(base),
        "trained": None,
        "converter_directory": str(converter),
        "quantizations": ["Q4_K_M", "Q8_0"],
        "threads": 2,
        **changes,
    }


def trained_spec(
    base: Path,
    base_file: Path,
    adapter: Path,
    converter: Path,
    *,
    behaviour: Path | None = None,
    end_of_turn_token_id: int = 2,
    **changes: Any,
) -> dict[str, Any]:
    """A base and an adapter; `base_file` is a GGUF of the base.

    `behaviour` lies beside the adapter where nothing else is said.
    """
    trained = {
        "adapter_directory": str(adapter),
        "base_file": str(base_file),
        "behaviour_file": str(behaviour or adapter / "behaviour.json"),
        "end_of_turn_token_id": end_of_turn_token_id,
    }
    return base_spec(base, converter, trained=trained, **changes)


def release(directory: Path, spec: dict[str, Any]) -> ReleaseResult:
    done = run_child("appliance.release", directory, spec)
    assert done.returncode == 0, _reason(directory, done.stderr)
    return durable.read_json(directory / "result.json", ReleaseResult)


def _reason(directory: Path, stderr: str) -> str:
    """What the child says of its end, else its last words: the converter writes a line for each tensor."""
    error = directory / "error.json"
    return error.read_text() if error.exists() else stderr[-2000:]


def refusal_of(directory: Path, spec: dict[str, Any]) -> Failure:
    done = run_child("appliance.release", directory, spec)
    assert done.returncode == 1, done.stderr
    assert not (directory / "intermediate").exists()
    assert not list(directory.glob("*.gguf"))
    return durable.read_json(directory / "error.json", Failure)
