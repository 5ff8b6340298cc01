"""What the tests of the import child and of the release child share: real models, real processes.

Fixtures are imported by both packages' conftest; the starter model is imported once for both.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from appliance import durable, process
from tests import network_guard


def required_path(variable: str) -> Path:
    """The path in an environment variable; fails the test, never skips it, if there is none."""
    value = os.environ.get(variable)
    if not value:
        pytest.fail(f"set {variable}: see README.md, Development")
    path = Path(value)
    if not path.exists():
        pytest.fail(f"{variable} names {path}, which is not there")
    return path


def run_child(
    module: str, directory: Path, spec: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run a batch child to its end, as an operator would by hand."""
    directory.mkdir(exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(spec))
    return subprocess.run(
        process.python_child(module, str(directory)),
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **process.OFFLINE_ENVIRONMENT,
            **network_guard.CHILD_ENVIRONMENT,
        },
        cwd=directory,
        check=False,
    )


def import_spec(source: Path, licence: str = "apache-2.0") -> dict[str, Any]:
    return {"name": "tested", "source": str(source), "licence": licence, "origin": "test"}


@pytest.fixture(scope="session")
def starter_gguf() -> Path:
    return required_path("APPLIANCE_TEST_STARTER_GGUF")


@pytest.fixture(scope="session")
def converter() -> Path:
    return required_path("APPLIANCE_TEST_CONVERTER")


@pytest.fixture(scope="session")
def starter_import(starter_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the import child has imported the starter model."""
    directory = tmp_path_factory.getbasetemp() / "starter"
    if not (directory / "result.json").exists():
        done = run_child("appliance.basemodels", directory, import_spec(starter_gguf, licence=""))
        assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="session")
def starter(starter_import: Path) -> Path:
    """The starter model as a Hugging Face directory."""
    return starter_import / "hf"


@pytest.fixture(scope="session")
def tiny(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: two random layers under the starter's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        # Larger than usual, so that the most likely token stands out from noise.
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(starter).save_pretrained(directory)
    return directory


def make_adapter(
    base: Path,
    directory: Path,
    *,
    deviation: float = 0.02,
    control_text: bool = True,
    **options: Any,
) -> Path:
    """A LoRA adapter on every linear layer, with random weights in both halves."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **options
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=deviation)
    adapted.save_pretrained(directory)
    record_behaviour(adapted, base, directory / "behaviour.json", control_text=control_text)
    return directory


def record_behaviour(model: Any, base: Path, path: Path, *, control_text: bool) -> None:
    """What the trainer writes down of a model, over a few rows."""
    from transformers import AutoTokenizer

    from appliance.training import behaviour, rows

    data = path.with_name("rows.jsonl")
    questions = (
        "Count from 1 to 10.",
        f"It's {'<|im_end|>' if control_text else 'the end'} 12:30,  isn't it?",
        "日本語 ½ 😀",
        "a" * 90,
    )
    data.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "system", "content": "Answer in one word."},
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": "Done."},
                    ]
                }
            )
            + "\n"
            for question in questions
        )
    )
    conversations = rows.Conversations(AutoTokenizer.from_pretrained(base))
    examples = rows.read_examples(data, conversations, max_length=512, alive=lambda: None)
    found = behaviour.record(
        model,
        examples,
        data,
        conversations,
        base_in_4_bits=False,
        rows_at_once=2,
        alive=lambda: None,
    )
    durable.write_json(path, found)


def reported(directory: Path) -> list[dict[str, Any]]:
    """The lines of a child's metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
