"""A tiny real base model, real rows, and the real child process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.children import run_child, starter, starter_gguf, starter_import, tiny

__all__ = ["starter", "starter_gguf", "starter_import", "tiny"]

WORDS = [
    "screen",
    "battery",
    "invoice",
    "parcel",
    "late",
    "broken",
    "refund",
    "login",
    "reset",
    "charger",
    "box",
    "again",
]


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 rows of unequal length, all with the same answer: something that is quickly learned."""
    draw = random.Random(3)
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = []
    for _ in range(54):
        question = " ".join(draw.choices(WORDS, k=draw.randint(2, 20)))
        rows.append(row(("user", question), ("assistant", "hardware")))
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


@pytest.fixture
def spec(tiny: Path, train_file: Path) -> Callable[..., dict[str, Any]]:
    """`spec(**changes)`: a short QLoRA run; a change may name a field or a hyperparameter."""

    return partial(_spec, tiny, train_file)


@pytest.fixture(scope="session")
def lora_run(tiny: Path, train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job directory of a finished run without quantization, with an adapter of rank 4."""
    job = tmp_path_factory.mktemp("lora")
    done = run_child(
        "appliance.training", job, _spec(tiny, train_file, technique="lora", lora_dropout=0.0)
    )
    assert done.returncode == 0, done.stderr
    return job


def row(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


def _spec(base: Path, train_file: Path, **changes: Any) -> dict[str, Any]:
    fields = _fields(base, train_file)
    for name, value in changes.items():
        target = fields if name in fields else fields["hyperparameters"]
        assert name in target
        target[name] = value
    return fields


def _fields(base: Path, train_file: Path) -> dict[str, Any]:
    return {
        "base_directory": str(base),
        "initial_adapter_directory": None,
        "train_file": str(train_file),
        "validation_file": None,
        "validation_fraction": 0.1,
        "technique": "qlora",
        "hyperparameters": {
            "num_train_epochs": 1,
            "learning_rate": 0.02,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "max_length": 128,
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.2,
        },
        "seed": 11,
        "checkpoint_seconds": 1e9,
        "threads": 1,
    }
