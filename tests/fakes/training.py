"""The trainer without torch. The first row's first message is the behaviour: "slow", "endless", "hang" …

It takes a token for a byte of a row, a second and 100 tokens for a step, and 10 seconds more for the first;
only a run that is cut short is validated, for 2 seconds.
It counts steps, keeps its count in `checkpoints/`, and goes on from there after a kill.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec

from appliance import batch, durable
from appliance.child_records import TrainingResult, TrainingSpec
from tests.fakes import behaviour

# Steps, and seconds a step; a "long" one leaves time enough to be killed in the middle.
PACE = {"slow": (24, 0.08), "long": (120, 0.05), "endless": (12000, 0.05)}
ORDINARY_PACE = (5, 0.0)
VALIDATIONS = 3


def main(directory: Path, reporter: batch.Reporter) -> TrainingResult:
    spec = durable.read_json(directory / batch.SPEC, TrainingSpec)
    rows = [json.loads(line) for line in Path(spec.train_file).read_text().splitlines()]
    word = rows[0]["messages"][0]["content"]
    if not (Path(spec.base_directory) / "config.json").is_file():
        raise AssertionError("the base should have been imported")
    behaviour.act(word, directory, reporter)
    total, step_seconds = PACE.get(word, ORDINARY_PACE)
    total = min(total, spec.max_steps or total)
    _train(directory, reporter, total, step_seconds)
    if spec.max_steps is not None:
        data = {"step": total, "valid_loss": 0.5, "seconds": 12.0 + total}
        reporter.report(f"validation:{total}", "validated", data=data)
    tokens = sum(len(str(row)) for row in rows)
    adapter = directory / "adapter"
    adapter.mkdir(exist_ok=True)
    durable.write_json(adapter / "adapter.json", {"spec": msgspec.to_builtins(spec), "word": word})
    return TrainingResult(
        steps=total,
        epochs=1.0,
        trained_tokens=tokens,
        train_loss=1.0 / total,
        validation_loss=None,
        seconds=0.1,
        end_of_turn_token_id=2,
        planned_tokens=tokens * spec.hyperparameters.num_train_epochs,
        planned_validations=VALIDATIONS,
    )


def _train(directory: Path, reporter: batch.Reporter, total: int, seconds: float) -> None:
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    done = len(list(checkpoints.iterdir()))
    # Reports again what the checkpoint does not hold yet, as the real one does.
    for step in range(max(0, done - 1), total):
        time.sleep(seconds)
        if step >= done:
            durable.write_durably(checkpoints / f"step-{step + 1}", b"")
        reporter.report(
            f"step:{step + 1}",
            f"Step {step + 1}/{total}",
            data={
                "step": step + 1,
                "total_steps": total,
                "train_loss": 1.0 / (step + 1),
                "tokens": 100 * (step + 1),
                "seconds": 11.0 + step,
            },
            eta_seconds=(total - step) * seconds,
        )
    if done:
        reporter.report("resumed", f"went on from step {done}")


if __name__ == "__main__":
    batch.run(main)
