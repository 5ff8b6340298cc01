"""A model of which everything is known."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.child_records import TrainingResult
from appliance.exports.provenance import DataUsed, Provenance, Written
from appliance.records import (
    BaseModel,
    Hyperparameters,
    Job,
    JobStatus,
    Likeness,
    Parity,
    Plan,
    Quantization,
    Release,
    ReleaseFile,
    Strength,
)

HYPERPARAMETERS = Hyperparameters(
    num_train_epochs=3,
    learning_rate=2e-4,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    lr_scheduler_type="cosine",
    warmup_ratio=0.05,
    weight_decay=0.0,
    max_grad_norm=1.0,
    max_length=1024,
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
)


def likeness(mean_kl: float) -> Likeness:
    return Likeness(positions=100, mean_kl=mean_kl, top1_agreement=0.99)


PARITY = Parity(
    in_answers=likeness(0.0091),
    in_prompts=likeness(0.0832),
    unmerged=likeness(0.0727),
    strength=Strength(slope=0.976, error=0.0045),
    answers=8,
    equal_answers=7,
    stopped=8,
    stopped_when_trained=8,
)


def provenance(**changes: Any) -> Provenance:
    base = BaseModel(
        name="tiny-base",
        created_at=1,
        architecture="LlamaForCausalLM",
        parameters=134_515_008,
        context_length=8192,
        licence="Apache-2.0",
        source="the publisher's | USB disk",
        sha256="b" * 64,
        directory="base_models/tiny-base",
        files=(),
    )
    plan = Plan(
        base_model=base.name,
        initial_adapter=None,
        technique="qlora",
        hyperparameters=HYPERPARAMETERS,
        quantizations=(Quantization.Q4_K_M, Quantization.Q8_0),
        validation_fraction=0.05,
    )
    job = Job(
        id="ftjob-abc",
        created_at=2,
        model=base.name,
        training_file="file-1",
        validation_file=None,
        seed=7,
        suffix="faults",
        metadata={},
        method={},
        appliance={},
        plan=plan,
        status=JobStatus.SUCCEEDED,
        fine_tuned_model="ft:tiny-base:local:faults:abc",
    )
    files = tuple(
        ReleaseFile(
            quantization=quantization,
            path=f"jobs/ftjob-abc/release/model-{quantization}.gguf",
            bytes=1000 + number,
            sha256=str(number) * 64,
            parity=PARITY if number == 0 else None,
        )
        for number, quantization in enumerate(plan.quantizations)
    )
    release = Release(
        name="ft:tiny-base:local:faults:abc",
        created_at=1_790_000_000,
        job_id=job.id,
        base_model=base.name,
        adapter_directory="jobs/ftjob-abc/training/adapter",
        files=files,
    )
    training = TrainingResult(
        steps=30,
        epochs=3.0,
        trained_tokens=12_345,
        train_loss=0.25,
        validation_loss=0.5,
        seconds=61.0,
        end_of_turn_token_id=2,
    )
    data = DataUsed(
        id="file-1", job_id=job.id, use="training", bytes=4000, rows=120, sha256="d" * 64
    )
    known = Provenance(
        release=release,
        base=base,
        job=job,
        earlier_jobs=(),
        data=(data,),
        training=training,
        versions={"torch": "2.13.0", "peft": "0.21.2"},
    )
    return msgspec.structs.replace(known, **changes)


def written(known: Provenance) -> list[Written]:
    """The release's files and its adapter."""
    found = [
        Written(
            name=f"model-{file.quantization}.gguf",
            bytes=file.bytes,
            sha256=file.sha256,
            released=file,
        )
        for file in known.release.files
    ]
    return [Written(name="adapter.gguf", bytes=9, sha256="a" * 64), *found]


def continued() -> Provenance:
    """One that goes on from an earlier model, which was deleted since."""
    known = provenance()
    earlier = msgspec.structs.replace(
        known.job, id="ftjob-old", fine_tuned_model="ft:tiny-base::old"
    )
    used = DataUsed(id="file-0", job_id=earlier.id, use="training")
    return provenance(earlier_jobs=(earlier,), data=(*known.data, used))
