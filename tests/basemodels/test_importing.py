from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import batch, durable, gguf_header
from appliance.batch import Failure
from appliance.child_records import ImportResult
from appliance.errors import InvalidInput
from tests.children import import_spec, reported, run_child

pytestmark = [pytest.mark.torch, pytest.mark.llama]


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "source"))


def import_from(source: Path, directory: Path) -> ImportResult:
    done = run_child("appliance.basemodels", directory, import_spec(source))
    assert done.returncode == 0, done.stderr
    return durable.read_json(directory / "result.json", ImportResult)


def refusal_of(source: Path, directory: Path) -> Failure:
    done = run_child("appliance.basemodels", directory, import_spec(source))
    assert done.returncode == 1, done.stderr
    assert not (directory / "hf").exists()
    assert not (directory / "hf.partial").exists()
    return durable.read_json(directory / "error.json", Failure)


def edit(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))


@pytest.mark.slow
class TestStarterGguf:
    def test_result_describes_the_model(self, starter_import: Path) -> None:
        result = durable.read_json(starter_import / "result.json", ImportResult)
        assert result.architecture == "LlamaForCausalLM"
        assert result.parameters == 134_515_008
        assert result.context_length == 8192
        assert result.licence == "apache-2.0"  # stated by the file itself
        assert len(result.sha256) == 64

    def test_directory_is_ordinary_and_complete(self, starter: Path) -> None:
        assert {path.name for path in starter.iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        }
        config = json.loads((starter / "config.json").read_text())
        assert config["dtype"] == "float32"
        assert "quantization_config" not in config

    def test_chat_template_is_the_files_own(self, starter: Path, starter_gguf: Path) -> None:
        expected = gguf_header.read(starter_gguf).metadata["tokenizer.chat_template"]
        assert (starter / "chat_template.jinja").read_text() == expected

    def test_splits_digits_as_the_model_was_trained_to(self, starter: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(starter)
        # Without the file's own pre-tokenizer the two spaces become two tokens.
        assert tokenizer("x  1")["input_ids"] == [104, 256, 33]

    def test_answers(self, starter: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(starter)
        model = AutoModelForCausalLM.from_pretrained(starter, dtype=torch.float32)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)
        assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
class TestHuggingFaceDirectory:
    def test_weights_and_tokenizer_come_in_byte_for_byte(
        self, source: Path, tmp_path: Path
    ) -> None:
        result = import_from(source, tmp_path / "import")
        hf = tmp_path / "import" / "hf"
        for name in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"):
            assert (hf / name).read_bytes() == (source / name).read_bytes()
        assert (
            result.parameters
            == 49152 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3 + 2 * 64) + 64
        )
        assert result.context_length == 512
        assert not [line for line in reported(tmp_path / "import") if line["level"] != "info"]

    def test_a_wrong_eos_token_is_set_right_and_told(self, source: Path, tmp_path: Path) -> None:
        edit(source / "tokenizer_config.json", eos_token="<|endoftext|>")
        edit(source / "generation_config.json", eos_token_id=0)
        import_from(source, tmp_path / "import")
        hf = tmp_path / "import" / "hf"
        (warning,) = [r for r in reported(tmp_path / "import") if r["level"] == "warn"]
        assert "'<|im_end|>'" in warning["message"]
        assert "'<|endoftext|>'" in warning["message"]
        generation = json.loads((hf / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [2, 0]
        from transformers import AutoTokenizer

        assert AutoTokenizer.from_pretrained(hf).eos_token_id == 2

    def test_a_missing_generation_config_is_written(self, source: Path, tmp_path: Path) -> None:
        (source / "generation_config.json").unlink()
        import_from(source, tmp_path / "import")
        written = json.loads((tmp_path / "import" / "hf" / "generation_config.json").read_text())
        assert written["eos_token_id"] == 2

    def test_a_pickle_is_refused(self, source: Path, tmp_path: Path) -> None:
        (source / "training_args.bin").write_bytes(b"\x80")
        failure = refusal_of(source, tmp_path / "import")
        assert failure.code == "unsafe_model_directory"
        assert "training_args.bin" in failure.message

    def test_an_incomplete_checkpoint_is_refused(self, source: Path, tmp_path: Path) -> None:
        edit(source / "config.json", num_hidden_layers=3)
        failure = refusal_of(source, tmp_path / "import")
        assert failure.code == "incomplete_model"
        assert "layers.2" in failure.message

    def test_weights_of_another_shape_are_refused(self, source: Path, tmp_path: Path) -> None:
        edit(source / "config.json", intermediate_size=256)
        assert refusal_of(source, tmp_path / "import").code == "unreadable_model"

    def test_a_missing_source_is_refused(self, tmp_path: Path) -> None:
        failure = refusal_of(tmp_path / "nowhere", tmp_path / "import")
        assert failure.code == "no_such_source"

    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        failure = refusal_of(tmp_path / "pipe", tmp_path / "import")
        assert failure.code == "no_such_source"


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda source: (source / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda source: (source / "chat_template.jinja").unlink(), "no_chat_template"),
        (write("chat_template.jinja", "{% for %}"), "invalid_template"),
        (
            write("chat_template.jinja", "{{ " + "(" * 300 + "1" + ")" * 300 + " }}"),
            "invalid_template",
        ),
        (write("chat_template.jinja", "{{ raise_exception('no') }}"), "template_refused"),
        (write("chat_template.jinja", "{{ messages[0].content }}"), "invalid_template"),
        (
            lambda source: edit(source / "tokenizer_config.json", chat_template="x"),
            "two_chat_templates",
        ),
        (write("tokenizer.json", "{}"), "invalid_tokenizer"),
    ],
)
def test_a_model_that_cannot_hold_a_conversation_is_refused(
    source: Path, tmp_path: Path, spoil: Callable[[Path], object], code: str
) -> None:
    from appliance.basemodels import chat

    spoil(source)
    with pytest.raises(InvalidInput) as refused:
        chat.prepare(source, batch.Reporter(tmp_path))
    assert refused.value.code == code


def test_a_template_that_does_not_end_is_given_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.basemodels import chat

    monkeypatch.setattr(chat, "TEMPLATE_SECONDS", 0.3)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (source / "chat_template.jinja").write_text(loop)
    with pytest.raises(InvalidInput, match=r"takes more than 0\.3 seconds") as refused:
        chat.prepare(source, batch.Reporter(tmp_path))
    assert refused.value.code == "template_refused"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.slow
def test_a_model_without_a_template_takes_the_operators(source: Path, tmp_path: Path) -> None:
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    assert refusal_of(source, tmp_path / "without").code == "no_chat_template"
    spec = {**import_spec(source), "chat_template": template}
    done = run_child("appliance.basemodels", tmp_path / "import", spec)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "import" / "hf" / "chat_template.jinja").read_text() == template


def test_a_model_with_a_template_takes_no_other(source: Path) -> None:
    from appliance.basemodels import chat

    with pytest.raises(InvalidInput, match="brings its own") as refused:
        chat.give_template(source, "{{ messages }}")
    assert refused.value.code == "two_chat_templates"


def test_what_no_library_foresees_is_a_refusal_too(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.basemodels import importing

    class PanicException(BaseException):
        """As libraries in Rust raise it."""

    def panic(*_: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(importing, "_limit_resources", lambda source_bytes: None)
    monkeypatch.setattr(importing.chat, "prepare", panic)
    directory = tmp_path / "import"
    directory.mkdir()
    durable.write_json(directory / "spec.json", import_spec(source))
    with pytest.raises(InvalidInput, match="PanicException: index out of bounds") as refused:
        importing.import_base_model(directory, batch.Reporter(directory))
    assert refused.value.code == "unreadable_model"
    assert not (directory / "hf.partial").exists()


def test_weights_of_no_part_of_the_model_are_told(source: Path, tmp_path: Path) -> None:
    edit(source / "config.json", num_hidden_layers=1)
    import_from(source, tmp_path / "import")
    (warning,) = [r for r in reported(tmp_path / "import") if r["level"] == "warn"]
    assert "9 tensors belong to no part of this architecture" in warning["message"]


def test_a_template_that_ends_no_turn_is_told(source: Path, tmp_path: Path) -> None:
    from appliance.basemodels import chat

    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    chat.prepare(source, batch.Reporter(tmp_path))
    (warning,) = reported(tmp_path)
    assert warning["level"] == "warn"
    assert json.loads((source / "generation_config.json").read_text())["eos_token_id"] == 2


class TestGguf:
    def test_damage_is_refused_before_any_library_sees_it(self, tmp_path: Path) -> None:
        source = tmp_path / "model.gguf"
        source.write_bytes(b"GGUF" + bytes(100))
        assert refusal_of(source, tmp_path / "import").code == "invalid_gguf"

    def test_an_architecture_that_transformers_cannot_read_is_refused(self, tmp_path: Path) -> None:
        import gguf

        source = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(source, "unheard-of")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        failure = refusal_of(source, tmp_path / "import")
        assert failure.code == "unreadable_gguf"
        assert "'unheard-of'" in failure.message

    def test_a_number_of_layers_that_nobody_could_have_written_is_refused(
        self, tmp_path: Path
    ) -> None:
        import gguf

        source = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(source, "llama")
        writer.add_block_count(4_000_000_000)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        failure = refusal_of(source, tmp_path / "import")
        assert failure.code == "invalid_gguf"
        assert "llama.block_count should be at most 0" in failure.message

    def test_a_part_of_a_model_is_called_one(self, tmp_path: Path) -> None:
        import gguf

        source = tmp_path / "model-00001-of-00003.gguf"
        writer = gguf.GGUFWriter(source, "llama")
        writer.add_block_count(32)
        writer.add_uint16("split.count", 3)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        failure = refusal_of(source, tmp_path / "import")
        assert failure.code == "split_gguf"
        assert "one of 3 parts" in failure.message

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["smollm", "llama-bpe"])
    def test_pre_tokenizer_splits_as_llama_cpp_does(
        self, name: str, starter: Path, starter_gguf: Path, tmp_path: Path
    ) -> None:
        from transformers import AutoTokenizer

        from appliance.basemodels import gguf_source

        path = vocabulary_file(starter_gguf, tmp_path / "vocabulary.gguf", pre=name)
        tokenizer = AutoTokenizer.from_pretrained(starter)
        gguf_source.set_pre_tokenizer(tokenizer.backend_tokenizer, name)
        gguf_source.compare_with_llama_cpp(tokenizer, path)

    @pytest.mark.slow
    def test_a_tokenizer_that_splits_otherwise_is_refused(
        self, starter: Path, starter_gguf: Path
    ) -> None:
        from transformers import AutoTokenizer

        from appliance.basemodels import gguf_source

        tokenizer = AutoTokenizer.from_pretrained(starter)
        gguf_source.set_pre_tokenizer(tokenizer.backend_tokenizer, "llama-bpe")
        with pytest.raises(InvalidInput) as refused:
            gguf_source.compare_with_llama_cpp(tokenizer, starter_gguf)
        assert refused.value.code == "tokenizer_differs"


def vocabulary_file(source: Path, path: Path, *, pre: str) -> Path:
    """A GGUF with the vocabulary of `source` alone, under another pre-tokenizer's name."""
    import gguf

    metadata = gguf_header.read(source).metadata
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_limits_bound_address_space_file_size_and_open_files() -> None:
    code = (
        "import resource; from appliance.basemodels import importing; "
        "importing._limit_resources(1 << 30); "
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], "
        "resource.getrlimit(resource.RLIMIT_FSIZE)[0], "
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    address_space, file_size, open_files = map(int, done.stdout.split())
    assert address_space == 28 << 30
    assert file_size == 21 << 30
    assert open_files <= 1024
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
