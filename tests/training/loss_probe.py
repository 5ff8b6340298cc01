"""A program for test_loss: TRL's loss and ours on the same rows, and what the adapter is kept in, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from appliance import durable
from appliance.child_records import TrainingSpec
from appliance.training import adapter, base, precision, trainer

ROWS = [(30, 21), (24, 23), (12, 3), (28, 0)]
ITEMS = 7


def loss_and_gradient(compute: object, *arguments: object, **options: object) -> list[float]:
    loss = compute(*arguments, **options)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = sum(float(gradient.abs().sum()) for gradient in gradients)
    model.zero_grad()
    return [float(loss), total]


if __name__ == "__main__":
    directory, spec_path = map(Path, sys.argv[1:])
    spec = durable.read_json(spec_path, TrainingSpec)
    dtype, _ = precision.choose()
    torch.manual_seed(0)
    model = adapter.attach_fresh(
        base.load_model(Path(spec.base_directory), "qlora", dtype), spec.hyperparameters
    )
    rows = []
    for length, first in ROWS:
        ids = torch.randint(1000, 2000, (length,)).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * first + ids[first:]})
    run = trainer.AdapterTrainer(
        checkpoint_root=directory,
        args=trainer.configuration(
            spec.hyperparameters, seed=1, max_steps=None, output_directory=directory
        ),
        model=model,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
    )
    batch = run.data_collator(rows)
    model.eval()  # no dropout between the two
    for parameter in model.parameters():
        if (
            parameter.requires_grad
        ):  # a fresh adapter's second half is zero, and so is half its gradient
            torch.nn.init.normal_(parameter, std=0.05)
    ours = [
        loss_and_gradient(run.compute_loss, model, batch, num_items_in_batch=items)
        for items in (None, ITEMS)
    ]
    model.get_base_model().set_output_embeddings(run._head)
    found = {
        "ours": ours,
        "theirs": [
            loss_and_gradient(
                SFTTrainer.compute_loss, run, model, dict(batch), num_items_in_batch=items
            )
            for items in (None, ITEMS)
        ],
        "adapter_is_kept_in_the_chosen_format": {
            p.dtype for p in model.parameters() if p.requires_grad
        }
        == {dtype},
        "float32": dtype is torch.float32,
    }
    print(json.dumps(found))
