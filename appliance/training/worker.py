"""One training run, in reading order: load, tokenize, train, save.

Knows the job directory and nothing else of the appliance: no job, no queue, no release.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import set_seed
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from appliance import batch, durable, versions
from appliance.child_records import TrainingResult, TrainingSpec
from appliance.compute import LENGTH_MULTIPLE
from appliance.errors import ChildFailed
from appliance.training import (
    adapter,
    base,
    behaviour,
    callbacks,
    checkpoints,
    importance,
    precision,
    rows,
    split,
    trainer,
)

CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
BEHAVIOUR = "behaviour.json"
IMPORTANCE = "importance.safetensors"


def train(directory: Path, reporter: batch.Reporter) -> TrainingResult:
    """Train as `spec.json` says; goes on from the newest checkpoint if there is one."""
    started_at = time.monotonic()
    spec = durable.read_json(directory / batch.SPEC, TrainingSpec)
    torch.set_num_threads(spec.threads)
    with _out_of_memory_as_error():
        tokenizer = base.load_tokenizer(Path(spec.base_directory))
        conversations = rows.Conversations(tokenizer)
        train_rows, validation_rows = _rows(spec, conversations, reporter)
        end_of_turn_id = rows.end_of_turn_id(conversations)
        model = _model(spec, reporter)
        run = _trainer(
            directory,
            spec,
            reporter,
            model=model,
            processing_class=tokenizer,
            train_dataset=_dataset(train_rows),
            eval_dataset=_dataset(sorted(validation_rows, key=_length))
            if validation_rows
            else None,
            data_collator=_collator(tokenizer, end_of_turn_id),
        )
        _train(directory, run, reporter)
        # A run that is cut short is thrown away.
        if spec.max_steps is None:
            held_out = validation_rows or train_rows
            _record_behaviour(directory, spec, run, conversations, held_out, reporter)
            if spec.importance_matrix:
                _record_importance(directory, run, train_rows, reporter)
        _publish_adapter(directory, model)
    return TrainingResult(
        steps=run.state.global_step,
        epochs=run.state.epoch,
        trained_tokens=int(run.state.num_input_tokens_seen),
        train_loss=callbacks.mean_training_loss(run.state),
        validation_loss=_last_validation_loss(run.state),
        seconds=time.monotonic() - started_at,
        end_of_turn_token_id=end_of_turn_id,
        planned_tokens=spec.hyperparameters.num_train_epochs * sum(map(_length, train_rows)),
        planned_validations=(
            callbacks.validations(spec.hyperparameters.num_train_epochs) if validation_rows else 0
        ),
        versions=versions.installed(),
    )


def _rows(
    spec: TrainingSpec, conversations: rows.Conversations, reporter: batch.Reporter
) -> tuple[list[rows.Example], list[rows.Example]]:
    """(train, validation); how they came about is reported."""

    def read(path: str) -> list[rows.Example]:
        return rows.read_examples(
            Path(path),
            conversations,
            max_length=spec.hyperparameters.max_length,
            alive=reporter.alive,
        )

    examples = read(spec.train_file)
    if spec.validation_file is not None:
        given = read(spec.validation_file)
        chosen = split.sample(given, spec.seed)
        message = f"{len(chosen)} of {len(given)} validation rows are used for validation loss"
        reporter.report("rows", f"{len(examples)} rows to train on; {message}")
        return examples, chosen
    train_rows, held_out = split.hold_out(examples, spec.validation_fraction, spec.seed)
    reporter.report(
        "rows",
        f"{len(held_out)} of {len(examples)} rows are held out for validation loss "
        f"(a fraction of {spec.validation_fraction:g}, at most {split.MOST_VALIDATION_ROWS} rows, "
        f"none below {split.LEAST_ROWS_TO_SPLIT} rows)",
    )
    return train_rows, held_out


def _model(spec: TrainingSpec, reporter: batch.Reporter) -> Any:
    dtype, reason = precision.choose()
    reporter.report("load", f"Loading the base model for {spec.technique}, {reason}")
    model = base.load_model(Path(spec.base_directory), spec.technique, dtype)
    reporter.alive()
    # PEFT draws a fresh adapter from the global generator.
    set_seed(spec.seed)
    if spec.initial_adapter_directory is None:
        return adapter.attach_fresh(model, spec.hyperparameters)
    return adapter.attach_existing(
        model, Path(spec.initial_adapter_directory), spec.hyperparameters
    )


def _trainer(
    directory: Path, spec: TrainingSpec, reporter: batch.Reporter, **parts: Any
) -> trainer.AdapterTrainer:
    root = directory / CHECKPOINTS
    return trainer.AdapterTrainer(
        checkpoint_root=root,
        args=trainer.configuration(
            spec.hyperparameters,
            seed=spec.seed,
            output_directory=root,
            max_steps=spec.max_steps,
        ),
        callbacks=[
            callbacks.Schedule(
                validate=parts["eval_dataset"] is not None,
                cut_short=spec.max_steps is not None,
                checkpoint_seconds=spec.checkpoint_seconds,
            ),
            callbacks.Progress(reporter),
        ],
        **parts,
    )


def _dataset(examples: list[rows.Example]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [numpy.frombuffer(each.input_ids, numpy.int32) for each in examples],
            "labels": [numpy.frombuffer(each.labels, numpy.int32) for each in examples],
        }
    )


def _collator(tokenizer: Any, end_of_turn_id: int) -> DataCollatorForLanguageModeling:
    # Labels and attention masks are built from lengths, never by comparing with this id; that it is not
    # the end of turn is a second lock on the same door.
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0, 1)
    pad_id = next(i for i in candidates if i is not None and i != end_of_turn_id)
    return DataCollatorForLanguageModeling(pad_token_id=pad_id, pad_to_multiple_of=LENGTH_MULTIPLE)


def _train(directory: Path, run: trainer.AdapterTrainer, reporter: batch.Reporter) -> None:
    checkpoint = checkpoints.newest_valid(directory / CHECKPOINTS, reporter)
    if checkpoint is not None:
        reporter.report(f"resume:{checkpoint.name}", f"Resuming from {checkpoint.name}")
    run.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _record_behaviour(
    directory: Path,
    spec: TrainingSpec,
    run: trainer.AdapterTrainer,
    conversations: rows.Conversations,
    examples: list[rows.Example],
    reporter: batch.Reporter,
) -> None:
    reporter.report("behaviour", "Writing down how the trained model answers")
    found = behaviour.record(
        run.whole_model(),
        examples[: split.MOST_VALIDATION_ROWS],
        Path(spec.validation_file or spec.train_file),
        conversations,
        base_in_4_bits=spec.technique == "qlora",
        rows_at_once=spec.hyperparameters.per_device_train_batch_size,
        alive=reporter.alive,
    )
    durable.write_json(directory / BEHAVIOUR, found)


def _record_importance(
    directory: Path,
    run: trainer.AdapterTrainer,
    examples: list[rows.Example],
    reporter: batch.Reporter,
) -> None:
    reporter.report("importance", "Looking at what matters to each layer, for the quantizer")
    importance.record(run.whole_model(), examples, directory / IMPORTANCE, reporter.alive)


def _publish_adapter(directory: Path, model: Any) -> None:
    incoming, final = directory / f".{ADAPTER}.incoming", directory / ADAPTER
    for left_over in (incoming, final):
        shutil.rmtree(left_over, ignore_errors=True)
    incoming.mkdir()
    adapter.write(model, incoming)
    durable.publish_directory(incoming, final)


def _last_validation_loss(state: Any) -> float | None:
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return losses[-1] if losses else None


def _length(example: rows.Example) -> int:
    return len(example.input_ids)


@contextlib.contextmanager
def _out_of_memory_as_error() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise ChildFailed(
            "out_of_memory",
            f"training should fit into the accelerator's memory, but: {exc}",
            next_step="lower per_device_train_batch_size or max_length, or choose a smaller base model",
        ) from exc
