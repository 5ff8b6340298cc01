from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.basemodels import source_directory
from appliance.errors import InvalidInput

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    write_json(directory / "config.json", CONFIG)
    write_json(directory / "tokenizer.json", {})
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    (directory / "model.safetensors").write_bytes(content)
    return directory


def names(files: list[Path]) -> set[str]:
    return {path.name for path in files}


def test_takes_what_is_known_and_leaves_what_is_harmless(source: Path) -> None:
    for name in ("LICENSE", "README.md", "USE_POLICY.md", ".gitattributes"):
        (source / name).write_text("text")
    (source / ".cache" / "huggingface").mkdir(parents=True)
    files = source_directory.check(source)
    expected = {"config.json", "tokenizer.json", "model.safetensors", "LICENSE", "README.md"}
    assert names(files) == expected
    destination = source.parent / "copy"
    destination.mkdir()
    assert names(list(source_directory.copy(files, destination))) == expected
    assert (destination / "LICENSE").read_text() == "text"


def test_a_link_inside_the_directory_is_copied_as_a_file(source: Path) -> None:
    (source / "LICENSE.txt").write_text("text")
    (source / "LICENSE").symlink_to("LICENSE.txt")
    destination = source.parent / "copy"
    destination.mkdir()
    list(source_directory.copy(source_directory.check(source), destination))
    assert not (destination / "LICENSE").is_symlink()


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda source: write_json(source / "config.json", {**CONFIG, **changes})


def text(name: str, content: str = "x") -> Callable[[Path], object]:
    return lambda source: (source / name).write_text(content)


def index(content: Any) -> Callable[[Path], None]:
    return lambda source: write_json(source / "model.safetensors.index.json", content)


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (text("pytorch_model.bin"), "pytorch_model.bin: is a pickle"),
    (text("optimizer.pt"), "optimizer.pt: is a pickle"),
    (text("consolidated.00.pth"), "consolidated.00.pth: is a pickle"),
    (text("data.pkl"), "data.pkl: is a pickle"),
    (text("modeling_llama.py"), "modeling_llama.py: is code"),
    (text("model.onnx"), "model.onnx: is not a file of a known kind"),
    (text("LICENSE.exe"), "LICENSE.exe: is not a file of a known kind"),
    (lambda source: (source / "original").mkdir(), "original: is not a regular file"),
    (lambda source: os.mkfifo(source / "vocab.json"), "vocab.json: is not a regular file"),
    (lambda source: (source / "vocab.json").symlink_to("/etc/passwd"), "is a link to outside"),
    (lambda source: (source / "vocab.json").symlink_to("gone"), "is not a regular file"),
    (config(auto_map={"AutoModel": "evil.Model"}), "config.json: names code to run"),
    (config(text_config={"auto_map": {}}), "config.json: names code to run"),
    (
        lambda source: write_json(source / "tokenizer_config.json", {"auto_map": {}}),
        "tokenizer_config.json: names code to run",
    ),
    (config(model_type="../evil"), "model_type should be a plain name"),
    (config(model_type=None), "model_type should be a plain name"),
    (config(model_type="llama\n"), "model_type should be a plain name"),
    (config(architectures=[]), "architectures should be one name"),
    (config(architectures=["os.system"]), "architectures should be one name"),
    (config(num_hidden_layers=10**9), "num_hidden_layers should be at most 1, the number of"),
    (config(num_hidden_layers=-1), "num_hidden_layers should be at most 1"),
    (config(text_config={"n_routed_experts": 1e18}), "n_routed_experts should be at most 1"),
    (config(quantization_config={}), "the weights are quantized"),
    (text("config.json", "{"), "config.json: is not JSON"),
    (text("config.json", "[" * 100_000), "config.json: is not JSON"),
    (text("config.json", "[]"), "config.json: is no JSON object"),
    (lambda source: (source / "config.json").unlink(), "config.json: is missing"),
    (lambda source: (source / "model.safetensors").unlink(), "model.safetensors: is missing"),
    (text("model.safetensors", "short"), "model.safetensors: has 5 bytes"),
    (index({}), "should hold a weight_map"),
    (index({"weight_map": {"w": "../../etc/passwd"}}), "names '../../etc/passwd'"),
    (index({"weight_map": {"w": "model-00002-of-00002.safetensors"}}), "which is not there"),
]


@pytest.mark.parametrize(("spoil", "words"), FAULTS)
def test_refuses_by_name(source: Path, spoil: Callable[[Path], object], words: str) -> None:
    spoil(source)
    with pytest.raises(InvalidInput) as refused:
        source_directory.check(source)
    assert words in refused.value.message
    assert refused.value.code == "unsafe_model_directory"


def test_tells_all_faults_at_once(source: Path) -> None:
    spoilers = [text("a.py"), text("b.bin"), config(model_type="/"), text("c.dat")]
    for spoil in spoilers:
        spoil(source)
    with pytest.raises(InvalidInput) as refused:
        source_directory.check(source)
    for name in ("a.py", "b.bin", "config.json", "c.dat"):
        assert f"{name}: " in refused.value.message
