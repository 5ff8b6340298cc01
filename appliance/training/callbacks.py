"""What a run does beside its steps: report, validate, checkpoint, and stop when the loss is no number.

None of it changes the weights: two runs that checkpoint at different times end equal.
"""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from appliance.batch import Reporter
from appliance.errors import ChildFailed

MOST_REPORTS = 200
LEAST_VALIDATIONS = 4


class Progress(TrainerCallback):
    """Reports losses, speed and time left; shows life at every micro-step."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._started_at = 0.0
        self._first_step = 0
        self._first_token = 0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started_at = time.monotonic()
        self._first_step = state.global_step
        self._first_token = state.num_input_tokens_seen

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._reporter.alive()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._reporter.alive()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self._reporter.alive()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Any, **_: Any
    ) -> None:
        if "loss" in logs:
            _refuse_divergence(logs["loss"], state.global_step)
            every = math.ceil(state.max_steps / MOST_REPORTS)
            if state.global_step % every == 0 or state.global_step in (1, state.max_steps):
                self._report_training(state, logs["learning_rate"], every)
        elif "eval_loss" in logs:
            self._report_validation(state.global_step, logs["eval_loss"])

    def _report_training(self, state: TrainerState, learning_rate: float, every: int) -> None:
        loss = mean_training_loss(state, last=every)
        step, total = state.global_step, state.max_steps
        seconds = self._seconds
        tokens = state.num_input_tokens_seen
        self._reporter.report(
            f"step:{step}",
            f"Step {step}/{total}: training loss={loss:.4f}",
            data={
                "step": step,
                "total_steps": total,
                "epoch": state.epoch,
                "train_loss": loss,
                "learning_rate": learning_rate,
                "tokens_per_second": (tokens - self._first_token) / seconds,
                "tokens": tokens,
                "seconds": seconds,
            },
            eta_seconds=seconds / (step - self._first_step) * (total - step),
        )

    def _report_validation(self, step: int, loss: float) -> None:
        self._reporter.report(
            f"validation:{step}",
            f"Step {step}: validation loss={loss:.4f}",
            data={"step": step, "valid_loss": loss, "seconds": self._seconds},
        )

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started_at


class Schedule(TrainerCallback):
    """Asks for validation at the ends of epochs and quarters, for a checkpoint by the clock.

    A run that is cut short is validated once, at its end.
    """

    def __init__(self, *, validate: bool, cut_short: bool, checkpoint_seconds: float) -> None:
        self._validate = validate
        self._cut_short = cut_short
        self._checkpoint_seconds = checkpoint_seconds
        self._saved_at = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._saved_at = time.monotonic()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step, total = state.global_step, state.max_steps
        control.should_log = True
        control.should_evaluate = self._validate and step in (
            {total} if self._cut_short else validation_steps(total, int(args.num_train_epochs))
        )
        overdue = time.monotonic() - self._saved_at >= self._checkpoint_seconds
        control.should_save = overdue or step == total
        return control

    def on_save(self, *_: Any, **__: Any) -> None:
        self._saved_at = time.monotonic()


def validation_steps(total_steps: int, epochs: int) -> set[int]:
    """The end of every epoch, and of every quarter of a run that has fewer epochs than that."""
    parts = validations(epochs)
    return {math.ceil(total_steps * part / parts) for part in range(1, parts + 1)}


def validations(epochs: int) -> int:
    """How often a run of so many epochs is validated, unless it has fewer steps than that."""
    return epochs * math.ceil(LEAST_VALIDATIONS / epochs)


def mean_training_loss(state: TrainerState, last: int | None = None) -> float:
    """Mean over all steps of the run or the `last` ones, also those before a resumption."""
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    chosen = losses[-last:] if last else losses
    return math.fsum(chosen) / len(chosen)


def _refuse_divergence(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ChildFailed(
            "training_diverged",
            f"training loss should be a finite number; it is {loss} at step {step}",
            next_step="lower learning_rate",
        )
