"""A real store in a directory of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.records import Hyperparameters, Job, JobStatus, Plan
from appliance.store.rows import new_id
from appliance.store.store import Store

PLAN = Plan(
    base_model="fake-base",
    initial_adapter=None,
    technique="qlora",
    hyperparameters=Hyperparameters(
        num_train_epochs=1,
        learning_rate=1e-4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        lr_scheduler_type="linear",
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=128,
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
    ),
    quantizations=(),
    validation_fraction=0.0,
)


def make_job(status: JobStatus = JobStatus.VALIDATING_FILES) -> Job:
    return Job(
        id=new_id("ftjob-"),
        created_at=1,
        model="fake-base",
        training_file="file-1",
        validation_file=None,
        seed=2147483647,
        suffix="ü",
        metadata={"k": "\x00é\U0001f600"},
        method={"type": "supervised"},
        appliance={},
        plan=PLAN,
        status=status,
    )


@pytest.fixture
def store(state_dir: Path) -> Iterator[Store]:
    opened = Store(state_dir)
    yield opened
    opened.close()
