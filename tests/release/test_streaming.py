"""What is written tensor by tensor is what the usual pipeline writes, and what does not fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import durable, gguf_header
from appliance.child_records import TrainedBehaviour
from appliance.records import Quantization
from tests.children import make_adapter
from tests.release.reference import assert_same_tensors, reference_release
from tests.release.specs import refusal_of, release, trained_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.llama,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

# Two layers of nine tensors, the embeddings, and the last norm.
TINY_TENSORS = 20
UP = "base_model.model.model.layers.1.mlp.up_proj"


def test_every_type_equals_the_reference_in_one_pass(
    tiny: Path, tiny_file: Path, adapter: Path, converter: Path, tmp_path: Path
) -> None:
    names = [each.value for each in Quantization]
    spec = trained_spec(tiny, tiny_file, adapter, converter, quantizations=names)
    result = release(tmp_path / "ours", spec)
    theirs = reference_release(tiny, adapter, converter, tmp_path / "theirs", names)
    assert len(result.files) == 7
    for file in result.files:
        other = theirs / f"model-{file.quantization}.gguf"
        assert assert_same_tensors(Path(file.path), other) == TINY_TENSORS


def test_ranks_and_scales_by_pattern_equal_the_reference(
    tiny: Path, tiny_file: Path, converter: Path, tmp_path: Path
) -> None:
    patterned = make_adapter(
        tiny,
        tmp_path / "adapter",
        deviation=0.05,
        use_rslora=True,
        rank_pattern={"q_proj": 4},
        alpha_pattern={r"layers\.1\..*": 24},
    )
    spec = trained_spec(tiny, tiny_file, patterned, converter, quantizations=["F16"])
    result = release(tmp_path / "ours", spec)
    theirs = reference_release(tiny, patterned, converter, tmp_path / "theirs", ["F16"])
    assert_same_tensors(Path(result.files[0].path), theirs / "model-F16.gguf")
    # llama.cpp has one alpha for all: the adapter alone says the same in other numbers.
    assert result.adapter_file is not None
    assert_same_change(Path(result.adapter_file.path), patterned)


def assert_same_change(path: Path, adapter: Path) -> None:
    """Each pair of the GGUF, scaled as llama.cpp does, is what PEFT adds."""
    import numpy as np
    import torch

    from appliance.release import adapter as peft_adapter

    header = gguf_header.read(path)
    alpha = header.metadata["adapter.lora.alpha"]
    pairs = peft_adapter.read(adapter)
    # Values and outputs are not permuted on their way into a GGUF.
    for layer in (0, 1):
        for theirs, ours in (("self_attn.v_proj", "attn_v"), ("mlp.down_proj", "ffn_down")):
            name = f"blk.{layer}.{ours}.weight"
            a, b = (tensor_of(path, header, f"{name}.lora_{half}") for half in "ab")
            pair = pairs[f"model.layers.{layer}.{theirs}.weight"]
            expected = pair.add_to(torch.zeros(len(pair.b), pair.a.shape[1])).numpy()
            assert np.allclose(b @ a * (alpha / len(a)), expected, rtol=0.01, atol=1e-4)


def tensor_of(path: Path, header: gguf_header.GgufHeader, name: str) -> Any:
    import numpy as np

    tensor = header.tensors[name]
    assert tensor.ggml_type == 1
    values = np.fromfile(
        path, np.float16, tensor.elements, offset=header.data_offset + tensor.offset
    )
    return values.reshape(tensor.shape[::-1]).astype(np.float32)


def test_metadata_is_the_bases_but_for_name_and_type(released: Path, tiny_file: Path) -> None:
    base = gguf_header.read(tiny_file)
    found = gguf_header.read(released / "model-Q4_K_M.gguf")
    changed = {key for key in found.pairs if found.pairs[key] != base.pairs.get(key)}
    assert changed == {
        "general.name",
        "general.file_type",
        "general.base_model.count",
        "general.base_model.0.name",
    }
    assert base.pairs.keys() <= found.pairs.keys()
    assert found.metadata["general.file_type"] == 15
    assert found.metadata["general.base_model.0.name"] == "tiny"


def with_tensors(adapter: Path, directory: Path, **changed: Any) -> Path:
    """A copy of the adapter with some tensors of `UP` replaced, or with those of another name."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, directory)
    tensors = load_file(directory / "adapter_model.safetensors")
    for half, value in changed.items():
        tensors[f"{UP}.{half}.weight"] = value
    save_file(tensors, directory / "adapter_model.safetensors")
    return as_trained(directory)


def as_trained(directory: Path) -> Path:
    """Let `behaviour.json` say that this very adapter is what was trained."""
    from appliance.release import adapter

    path = directory / "behaviour.json"
    behaviour = durable.read_json(path, TrainedBehaviour)
    moved = {name: pair.norm for name, pair in adapter.read(directory).items()}
    durable.write_json(path, msgspec.structs.replace(behaviour, moved=moved))
    return directory


class TestRefusals:
    def test_a_pair_of_another_shape(
        self, tiny: Path, tiny_file: Path, adapter: Path, converter: Path, tmp_path: Path
    ) -> None:
        import torch

        other = with_tensors(adapter, tmp_path / "adapter", lora_A=torch.zeros(8, 96))
        failure = refusal_of(tmp_path / "r", trained_spec(tiny, tiny_file, other, converter))
        assert failure.code in ("release_check_failed", "conversion_failed")
        assert "96" in failure.message

    def test_a_pair_of_a_layer_that_the_base_lacks(
        self, tiny: Path, tiny_file: Path, adapter: Path, converter: Path, tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        other = Path(shutil.copytree(adapter, tmp_path / "adapter"))
        tensors = load_file(other / "adapter_model.safetensors")
        for half in ("lora_A", "lora_B"):
            moved = f"{UP.replace('layers.1', 'layers.2')}.{half}.weight"
            tensors[moved] = tensors.pop(f"{UP}.{half}.weight")
        save_file(tensors, other / "adapter_model.safetensors")
        as_trained(other)
        failure = refusal_of(tmp_path / "r", trained_spec(tiny, tiny_file, other, converter))
        assert failure.code in ("release_check_failed", "conversion_failed")
        assert "layers.2" in failure.message or "blk.2" in failure.message

    def test_numbers_that_are_not_finite(
        self, tiny: Path, tiny_file: Path, adapter: Path, converter: Path, tmp_path: Path
    ) -> None:
        import torch

        other = with_tensors(adapter, tmp_path / "adapter", lora_B=torch.full((128, 8), 1e38))
        failure = refusal_of(tmp_path / "r", trained_spec(tiny, tiny_file, other, converter))
        assert failure.code == "quantization_failed"
        assert "should be finite" in failure.message

    def test_a_file_of_another_base(
        self, tiny: Path, starter_gguf: Path, adapter: Path, converter: Path, tmp_path: Path
    ) -> None:
        spec = trained_spec(tiny, starter_gguf, adapter, converter)
        failure = refusal_of(tmp_path, spec)
        assert failure.code == "release_check_failed"
        assert "should be a tensor of the base's GGUF" in failure.message
