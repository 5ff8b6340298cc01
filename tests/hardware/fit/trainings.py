"""Real trainings whose memory is measured: the trainer's own process, fed rows of exactly known length.

`python -m tests.hardware.fit.trainings DIRECTORY` measures every case, DIRECTORY being the starter model as
imported (`hf`), and prints what the formula says beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from appliance import process
from appliance.compute import BFLOAT16_FEATURES
from appliance.hardware import host
from appliance.hardware.fit import shapes
from appliance.hardware.fit.shapes import ModelShape
from appliance.hardware.fit.training_on_cpu import CpuTraining, peak, plain_weight_bytes

MIB = 1 << 20
SAMPLE_SECONDS = 0.005
STEPS = 3
# Blocks of ever other sizes are asked for: what does not fit again shows only after some time.
RAGGED_STEPS = 30
# Those of the chat template around the words, and the first two words.
FRAME_TOKENS = 18
# Computes in 32 bits, as on a CPU without bfloat16.
IN_FLOAT32 = """
import sys
from pathlib import Path
from appliance import batch
from appliance.training import __main__, precision
precision.BFLOAT16_FEATURES = frozenset()
batch.run(__main__._main)
"""


class Case(NamedTuple):
    """One training: every row has `tokens` tokens, or at most so many; nearly all of them have a label."""

    model: str
    technique: str
    batch: int
    tokens: int
    r: int = 16
    float32: bool = False
    ragged: bool = False
    accumulation: int = 1


STARTER = ModelShape(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
    tie_word_embeddings=True,
)
# Shapes of Qwen 2.5 0.5B, SmolLM2 360M and Llama 3.2 1B, with the starter's vocabulary; and one whose
# output head is its own.
SHAPES = {
    "starter-135m": STARTER,
    "random-360m": ModelShape(
        hidden_size=960,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        head_dim=64,
        intermediate_size=2560,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "random-450m-untied": ModelShape(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=64,
        intermediate_size=2816,
        vocab_size=49152,
        tie_word_embeddings=False,
    ),
    "random-1b": ModelShape(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=8192,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
}
# The tests measure the first eight, the command all.
CASES = (
    Case("starter-135m", "qlora", 2, 256),
    Case("starter-135m", "lora", 1, 1024, r=256, accumulation=4),
    Case("random-360m", "lora", 1, 512),
    Case("random-450m-untied", "lora", 2, 512),
    Case("random-1b", "qlora", 1, 256),
    Case("starter-135m", "qlora", 2, 512, float32=True),
    Case("random-360m", "qlora", 4, 256, r=128, accumulation=2),
    Case("starter-135m", "qlora", 4, 384, ragged=True),
    Case("starter-135m", "qlora", 4, 512),
    Case("starter-135m", "lora", 4, 512),
    Case("random-450m-untied", "qlora", 2, 512),
    Case("random-1b", "lora", 2, 512),
    Case("random-360m", "lora", 1, 512, float32=True),
    Case("starter-135m", "qlora", 1, 2048, ragged=True),
    Case("starter-135m", "qlora", 1, 256, r=256, accumulation=4, float32=True),
)
TESTED = 8


def base_directory(model: str, starter: Path, root: Path) -> Path:
    """The model as a Hugging Face directory; a random one is made below `root` if it is not there."""
    if model == "starter-135m":
        return starter
    directory = root / model
    if not (directory / "tokenizer.json").exists():
        _make_random(SHAPES[model], starter, directory)
    return directory


def _make_random(shape: ModelShape, starter: Path, directory: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tie_word_embeddings,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    model.tie_weights()
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(starter).save_pretrained(directory)


def write_rows(case: Case, path: Path) -> None:
    """Rows of exactly known numbers of the starter's tokens: one word is one."""
    lengths = [case.tokens] * (case.batch * case.accumulation * STEPS)
    if case.ragged:
        draw = random.Random(1)
        lengths += [draw.randint(64, case.tokens) for _ in range(case.batch * RAGGED_STEPS)]
    lines = (json.dumps({"messages": _turns(length)}) + "\n" for length in lengths)
    path.write_text("".join(lines), encoding="utf-8")


def _turns(tokens: int) -> list[dict[str, str]]:
    words = " a" * (tokens - FRAME_TOKENS)
    turns = (("system", "a"), ("user", "a"), ("assistant", words))
    return [{"role": role, "content": content} for role, content in turns]


def spec(case: Case, base: Path, train_file: Path) -> dict[str, Any]:
    """The trainer's `spec.json`: a few steps, and a validation pass."""
    return {
        "base_directory": str(base),
        "initial_adapter_directory": None,
        "train_file": str(train_file),
        "validation_file": None,
        "validation_fraction": 0.0,
        "technique": case.technique,
        "hyperparameters": {
            "num_train_epochs": 1,
            "learning_rate": 1e-4,
            "per_device_train_batch_size": case.batch,
            "gradient_accumulation_steps": case.accumulation,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "max_length": case.tokens,
            "r": case.r,
            "lora_alpha": 2 * case.r,
            "lora_dropout": 0.0,
        },
        "seed": 1,
        "checkpoint_seconds": 1e9,
        "threads": 2,
    }


def measure(case: Case, base: Path, job: Path) -> int:
    """Peak bytes of memory that no file backs, of a training in processes of its own; it has to end well."""
    job.mkdir(parents=True)
    write_rows(case, job / "train.jsonl")
    (job / "spec.json").write_text(json.dumps(spec(case, base, job / "train.jsonl")))
    argv = [sys.executable, "-m", "appliance.training", str(job)]
    if case.float32:
        argv = [sys.executable, "-c", IN_FLOAT32, str(job)]
    environment = {**os.environ, **process.OFFLINE_ENVIRONMENT}
    with (job / "output").open("w") as output:
        child = subprocess.Popen(argv, stdout=output, stderr=output, env=environment)
        try:
            used = max(_watch(child))
        finally:
            child.kill()
            child.wait()
    assert child.returncode == 0, (job / "output").read_text()[-2000:]
    return used


def predict(case: Case, base: Path) -> int:
    """The same by the formula."""
    stored = json.loads((base / "config.json").read_text())
    shape = shapes.of_config(stored)
    assert shape == SHAPES[case.model]
    bfloat16 = precision_is_bfloat16() and not case.float32
    training = CpuTraining(
        technique=case.technique,
        tokens=case.batch * case.tokens,
        padded_rows=case.batch if case.ragged else 0,
        r=case.r,
        accumulates=case.accumulation > 1,
        bfloat16=bfloat16,
    )
    # Weights that are stored in the format that is computed in are mapped, and not measured.
    mapped = stored["dtype"] == ("bfloat16" if bfloat16 else "float32")
    return peak(shape, training) - (plain_weight_bytes(shape, training) if mapped else 0)


def precision_is_bfloat16() -> bool:
    """Whether the trainer computes in bfloat16 on this CPU."""
    return bool(set(host.read(Path("/")).cpu_features) & BFLOAT16_FEATURES)


def _watch(child: subprocess.Popen[bytes]) -> Iterator[int]:
    while child.poll() is None:
        yield sum(map(_anonymous_bytes, _tree(child.pid)))
        time.sleep(SAMPLE_SECONDS)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from _tree(int(child))


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def main(starter: Path) -> None:
    """Measure all cases one after the other and print a table."""
    print(f"{'model':20}{'':6}{'batch':>8}{'r':>4}{'':10}{'measured':>9}{'formula':>9}  MiB")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for number, case in enumerate(CASES):
            base = base_directory(case.model, starter, root)
            measured = measure(case, base, root / f"job-{number}")
            predicted = predict(case, base)
            kind = "float32" if case.float32 else "ragged" if case.ragged else ""
            print(
                f"{case.model:20}{case.technique:6}{case.batch:3}x{case.tokens:<4}{case.r:4} {kind:9}"
                f"x{case.accumulation}"
                f"{measured / MIB:9.0f}{predicted / MIB:9.0f}  {predicted / measured - 1:+.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
