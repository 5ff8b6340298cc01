from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import durable, gguf_header, process
from appliance.child_records import CONFIGURATION, ReleaseResult
from appliance.errors import ChildFailed
from tests.children import make_adapter, reported
from tests.release.specs import NAME, base_spec, refusal_of, release, trained_spec

pytestmark = [
    pytest.mark.torch,
    pytest.mark.llama,
    # PEFT asks transformers under a name that transformers is about to drop.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

FILES = {"model-Q4_K_M.gguf", "model-Q8_0.gguf", "adapter.gguf"}


def reference(
    base: Path, adapter: Path | None, prompt: list[int], count: int
) -> tuple[list[int], Any]:
    """Greedy tokens and their logits, by transformers and PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    answer, rows = [], []
    with torch.inference_mode():
        for _ in range(count):
            logits = model(torch.tensor([prompt + answer])).logits[0, -1]
            rows.append(logits)
            answer.append(int(logits.argmax()))
    return answer, torch.stack(rows).numpy()


def released_logits(path: Path, prompt: list[int], count: int) -> tuple[list[int], Any]:
    from appliance.release import llamacpp

    with llamacpp.log_to(lambda: None), llamacpp.Model(path, threads=2) as model:
        return model.greedy(prompt, count)


def engine_logits(path: Path, adapter: str | None) -> Any:
    """Of a prompt's next token, as the engine has them."""
    from appliance.engine.runtime import Part, Runtime

    runtime = Runtime(
        path, n_ctx=64, threads=2, slots=1, adapter_budget_bytes=1 << 30, on_progress=lambda _: None
    )
    if adapter is not None:
        assert runtime.adapters.load(adapter, in_use=())
    runtime.adapters.attach(adapter)
    (row,) = runtime.decode([Part([1, 4093, 198, 26843, 2], 0, 0, True)])
    assert row is not None
    runtime.vocabulary.close()
    return runtime.scores(row).copy()


@pytest.mark.slow
class TestRelease:
    def test_result_names_files_that_are_there(self, released: Path) -> None:
        result = durable.read_json(released / "result.json", ReleaseResult)
        assert [file.quantization for file in result.files] == ["Q4_K_M", "Q8_0"]
        for file in result.files:
            path = Path(file.path)
            assert path == released / f"model-{file.quantization}.gguf"
            assert path.stat().st_size == file.bytes
            assert durable.sha256_of(path) == file.sha256

    def test_nothing_else_is_left(self, released: Path) -> None:
        contract = {"spec.json", "result.json", "metrics.jsonl", "heartbeat", "lock"}
        assert {path.name for path in released.iterdir()} == contract | FILES

    def test_metadata_says_what_the_model_is(self, released: Path, tiny: Path) -> None:
        metadata = gguf_header.read(released / "model-Q8_0.gguf").metadata
        assert metadata["general.name"] == NAME
        assert metadata["tokenizer.chat_template"] == (tiny / "chat_template.jinja").read_text()
        assert metadata["tokenizer.ggml.eos_token_id"] == 2
        assert metadata["tokenizer.ggml.pre"] == "smollm"

    def test_every_pair_is_merged_and_told(self, released: Path) -> None:
        (merged,) = [line for line in reported(released) if line["key"] == "merged"]
        assert merged["data"] == {"lora_pairs": 14}

    def test_weights_are_those_that_were_trained(
        self, released: Path, tiny: Path, adapter: Path
    ) -> None:
        import numpy as np

        prompt = [1, 4093, 198, 26843, 2]
        _, expected = reference(tiny, adapter, prompt, 1)
        _, found = released_logits(released / "model-Q8_0.gguf", prompt, 1)
        _, base = reference(tiny, None, prompt, 1)
        error = np.linalg.norm(found[0] - expected[0]) / np.linalg.norm(expected[0])
        change = np.linalg.norm(base[0] - expected[0]) / np.linalg.norm(expected[0])
        # Eight-bit weights and activations cost some 3 % in so random a model; the adapter changes 35 %.
        assert error < 0.06
        assert change > 5 * error

    def test_adapter_alone_makes_of_the_base_what_the_merge_made(
        self, released: Path, tiny_file: Path
    ) -> None:
        import numpy as np

        result = durable.read_json(released / "result.json", ReleaseResult)
        file = result.adapter_file
        assert file is not None
        assert Path(file.path) == released / "adapter.gguf"
        assert Path(file.path).stat().st_size == file.bytes
        assert durable.sha256_of(Path(file.path)) == file.sha256
        plain = engine_logits(tiny_file, None)
        attached = engine_logits(tiny_file, file.path)
        merged = engine_logits(released / "model-Q8_0.gguf", None)
        error = np.linalg.norm(attached - merged) / np.linalg.norm(merged)
        change = np.linalg.norm(plain - merged) / np.linalg.norm(merged)
        # Each of the two is quantized by itself, so their errors add up.
        assert error < 0.1
        assert change > 4 * error

    def test_killed_in_the_middle_and_run_again_gives_the_same(
        self,
        released: Path,
        tiny: Path,
        tiny_file: Path,
        adapter: Path,
        converter: Path,
        tmp_path: Path,
    ) -> None:
        spec = trained_spec(tiny, tiny_file, adapter, converter)
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        for moment in ("merge", "check:Q4_K_M"):
            kill_when_reported(tmp_path, moment)
            # Nothing but what will be kept is ever written.
            assert {path.name for path in (tmp_path / "intermediate").iterdir()} <= FILES
            assert not (tmp_path / "result.json").exists()
        again = release(tmp_path, spec)
        first = durable.read_json(released / "result.json", ReleaseResult)
        assert [f.sha256 for f in again.files] == [f.sha256 for f in first.files]
        assert {path.name for path in tmp_path.iterdir()} == {
            path.name for path in released.iterdir()
        }

    def test_what_the_converter_made_of_the_configuration_is_read_again_where_it_is_there(
        self,
        released: Path,
        tiny: Path,
        tiny_file: Path,
        adapter: Path,
        converter: Path,
        tmp_path: Path,
    ) -> None:
        other = Path(shutil.copy(tiny_file, tmp_path / "base.gguf"))
        spec = trained_spec(tiny, other, adapter, converter, quantizations=["Q8_0"])
        first = durable.read_json(released / "result.json", ReleaseResult)
        expected = {file.quantization: file.sha256 for file in first.files}["Q8_0"]
        (file,) = release(tmp_path / "without", spec).files
        assert file.sha256 == expected
        known = json.loads(tiny_file.with_name(CONFIGURATION).read_bytes())
        assert known["hparams"]["num_attention_heads"] == 4
        known["hparams"]["num_attention_heads"] = 8
        (tmp_path / CONFIGURATION).write_text(json.dumps(known))
        # Queries are permuted by the number of heads.
        assert refusal_of(tmp_path / "other", spec).code == "parity_failed"
        # What other software made of it, or what is damaged, is made anew.
        known["versions"]["transformers"] = "4.0"
        for number, content in enumerate((json.dumps(known), "{", "[]", "{}")):
            (tmp_path / CONFIGURATION).write_text(content)
            (file,) = release(tmp_path / f"anew-{number}", spec).files
            assert file.sha256 == expected

    def test_without_adapter_the_base_itself_is_released(
        self, tiny: Path, converter: Path, tmp_path: Path
    ) -> None:
        import numpy as np
        import torch
        from transformers import AutoModelForCausalLM

        base = tmp_path / "base"
        shutil.copytree(tiny, base)
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
        model.save_pretrained(base)
        directory = tmp_path / "release"
        spec = base_spec(base, converter, quantizations=["Q8_0"])
        (file,) = release(directory, spec).files
        prompt = [1, 4093, 198, 26843, 2]
        _, found = released_logits(Path(file.path), prompt, 1)
        _, expected = reference(base, None, prompt, 1)
        assert np.linalg.norm(found - expected) < 0.06 * np.linalg.norm(expected)
        assert not [line for line in reported(directory) if line["key"] == "merge"]


def kill_when_reported(directory: Path, key: str) -> None:
    """Start the release child, and kill it and its group as soon as it reports `key`."""
    (directory / "metrics.jsonl").unlink(missing_ok=True)
    child = subprocess.Popen(
        process.python_child("appliance.release", str(directory)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **process.OFFLINE_ENVIRONMENT},
    )
    deadline = time.monotonic() + 120
    metrics = directory / "metrics.jsonl"
    while not (metrics.exists() and any(line["key"] == key for line in reported(directory))):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.slow
def test_the_real_model_answers_as_the_merged_one(
    starter: Path, starter_file: Path, converter: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(starter, tmp_path / "adapter", deviation=0.06)
    directory = tmp_path / "release"
    release(directory, trained_spec(starter, starter_file, adapter, converter))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(starter)
    messages = [{"role": "user", "content": "Count from 1 to 10."}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text)["input_ids"]
    # Three tokens: up to there the most likely one leads by more than eight-bit rounding can turn.
    expected, _ = reference(starter, adapter, prompt, 3)
    found, _ = released_logits(directory / "model-Q8_0.gguf", prompt, 3)
    assert found == expected
    assert found != reference(starter, None, prompt, 3)[0]


@pytest.mark.slow
class TestRefusals:
    def test_another_end_of_turn_than_trained(
        self, tiny: Path, tiny_file: Path, adapter: Path, converter: Path, tmp_path: Path
    ) -> None:
        spec = trained_spec(tiny, tiny_file, adapter, converter, end_of_turn_token_id=0)
        failure = refusal_of(tmp_path, spec)
        assert failure.code == "release_check_failed"
        assert "eos token id should be 0; found 2" in failure.message

    def test_an_adapter_with_a_missing_half(
        self, tiny: Path, tiny_file: Path, adapter: Path, converter: Path, tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        broken = Path(shutil.copytree(adapter, tmp_path / "adapter"))
        tensors = load_file(broken / "adapter_model.safetensors")
        del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
        save_file(tensors, broken / "adapter_model.safetensors")
        spec = trained_spec(tiny, tiny_file, broken, converter)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "release_check_failed"
        assert "model.layers.1.mlp.up_proj has ['B'] alone" in failure.message

    def test_weights_that_are_not_finite(self, tiny: Path, converter: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        base = Path(shutil.copytree(tiny, tmp_path / "base"))
        tensors = load_file(base / "model.safetensors")
        # Finite, as the quantizer demands, but too large to compute with.
        tensors["model.norm.weight"][:] = 3e38
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        failure = refusal_of(tmp_path / "release", base_spec(base, converter))
        assert failure.code == "release_check_failed"
        assert "not finite" in failure.message

    def test_no_converter(self, tiny: Path, tmp_path: Path) -> None:
        failure = refusal_of(tmp_path / "release", base_spec(tiny, tmp_path))
        assert failure.code == "no_converter"

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("import sys; sys.exit(1)", "it ended with 1"),
            ("import sys; sys.exit('no X here')", "it ended with no X here"),
            ("raise ValueError('no such X')", "ValueError: no such X"),
        ],
    )
    def test_a_converter_that_fails(
        self, script: str, words: str, tiny: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "convert_hf_to_gguf.py").write_text(script)
        failure = refusal_of(tmp_path / "release", base_spec(tiny, tmp_path))
        assert failure.code == "conversion_failed"
        assert failure.message.endswith(words)


class TestChecks:
    """The checks themselves, against one good file and tokenizers that differ from it."""

    @pytest.fixture
    def tokenizer(self, tiny: Path) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tiny)

    def check(self, released: Path, tokenizer: Any) -> None:
        from appliance.release import checks

        checks.check(released / "model-Q4_K_M.gguf", tokenizer, end_of_turn_token_id=2, threads=2)

    def test_the_good_file_passes(self, released: Path, tokenizer: Any) -> None:
        self.check(released, tokenizer)

    def change_template(tokenizer: Any) -> None:
        tokenizer.chat_template += " "

    def change_splitting(tokenizer: Any) -> None:
        from tokenizers import pre_tokenizers

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = byte_level

    @pytest.mark.parametrize(
        ("change", "words"), [(change_template, "chat template"), (change_splitting, "tokens of")]
    )
    def test_a_difference_fails_loudly(
        self, released: Path, tokenizer: Any, change: Callable[[Any], None], words: str
    ) -> None:
        change(tokenizer)
        with pytest.raises(ChildFailed, match=words) as failed:
            self.check(released, tokenizer)
        assert failed.value.code == "release_check_failed"

    def test_a_truncated_file_fails_loudly(
        self, released: Path, tokenizer: Any, tmp_path: Path
    ) -> None:
        from appliance.release import llamacpp

        content = (released / "model-Q8_0.gguf").read_bytes()
        (tmp_path / "cut.gguf").write_bytes(content[:-4096])
        with pytest.raises(ChildFailed, match="should load"):
            llamacpp.Model(tmp_path / "cut.gguf", threads=1).__enter__()
