"""TRL's SFTTrainer with our order of rows and our checkpoints.

Knows nothing of how rows were made, nor of where anything is reported.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from appliance.records import Hyperparameters
from appliance.training import adapter, checkpoints, head, precision
from appliance.training.rows import IGNORED_LABEL


class StepSortedSampler(torch.utils.data.Sampler[int]):
    """A shuffled order in which the rows of one optimizer step are sorted by length.

    An optimizer step sees the rows that plain shuffling would give it, so nothing is learned otherwise;
    its micro-batches hold rows of like length, so less is padded. The order is a function of seed and
    epoch alone: a resumed run needs no generator state to find it again.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self._lengths = lengths
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self._lengths)))
        random.Random(f"{self._seed}/{self._epoch}").shuffle(order)  # noqa: S311  no secret
        for start in range(0, len(order), self._rows_per_step):
            yield from sorted(
                order[start : start + self._rows_per_step], key=self._lengths.__getitem__
            )


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a PEFT model on rows that are tokenized and labelled already."""

    def __init__(self, *, checkpoint_root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._checkpoint_root = checkpoint_root
        self.remove_callback(PrinterCallback)
        self._restore_adapter_precision()
        self._head = (
            head.detach(self.model.get_base_model()) if self.args.device.type == "cpu" else None
        )

    def _restore_adapter_precision(self) -> None:
        """Undo TRL's cast of the adapter to bfloat16 on a 4-bit base, where that is only slow.

        Never the other way round: on an unquantized base PEFT keeps the adapter in float32 on purpose.
        """
        dtype, _ = precision.choose()
        if dtype is torch.float32:
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    def whole_model(self) -> Any:
        """The model with its output head, for use after the training."""
        if self._head is not None:
            self.model.get_base_model().set_output_embeddings(self._head)
        return self.model

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSortedSampler:
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return StepSortedSampler(lengths, rows_per_step, self.args.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss: the mean negative log-likelihood of the labelled tokens of an optimizer step.

        TRL's own head looks at labelled positions alone, and at a part of the vocabulary at a time, only on
        GPUs. On a CPU it takes every position through the whole vocabulary at once, for a small model as much
        work as all layers together, and more memory.
        """
        if self._head is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        targets = inputs.pop("labels")[:, 1:]
        labelled = targets != IGNORED_LABEL
        outputs = model(**inputs, use_cache=False)
        # Without its head the model calls hidden states logits.
        hidden, labels = outputs.logits[:, :-1][labelled], targets[labelled]
        total = head.summed_loss(hidden, self._head.weight, labels)
        loss = total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with checkpoints.publishing(self._checkpoint_root, self.state.global_step) as directory:
            adapter.write(self.model, directory)
            checkpoints.write_optimizer(self.optimizer, directory)
            checkpoints.write_scheduler(self.lr_scheduler, directory)
            checkpoints.write_random_state(directory)
            self.state.save_to_json(str(directory / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapter.load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer(self.optimizer, Path(checkpoint))
            checkpoints.load_scheduler(self.lr_scheduler, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The inherited one pickles the arguments next to the model.
        adapter.write(self.model, Path(output_dir or self.args.output_dir))


def configuration(
    hyperparameters: Hyperparameters, *, seed: int, output_directory: Path, max_steps: int | None
) -> SFTConfig:
    """TRL's settings for a run: what callbacks do by themselves is switched off here.

    `max_steps` wins over the number of epochs.
    """
    on_gpu = torch.cuda.is_available()  # not tried on a GPU
    dtype, _ = precision.choose()
    return SFTConfig(
        output_dir=str(output_directory),
        seed=seed,
        num_train_epochs=hyperparameters.num_train_epochs,
        max_steps=-1 if max_steps is None else max_steps,
        learning_rate=hyperparameters.learning_rate,
        per_device_train_batch_size=hyperparameters.per_device_train_batch_size,
        per_device_eval_batch_size=hyperparameters.per_device_train_batch_size,
        gradient_accumulation_steps=hyperparameters.gradient_accumulation_steps,
        lr_scheduler_type=hyperparameters.lr_scheduler_type,
        warmup_steps=hyperparameters.warmup_ratio,
        weight_decay=hyperparameters.weight_decay,
        max_grad_norm=hyperparameters.max_grad_norm,
        # Rows are tokenized, labelled and known to be short enough.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=dtype is torch.bfloat16,
        use_cpu=not on_gpu,
        # Memory is what a GPU lacks, and time what a CPU lacks.
        gradient_checkpointing=on_gpu,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        # A loss that is no number must be seen, not replaced by the mean of the others.
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
        report_to="none",
    )
