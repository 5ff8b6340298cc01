"""With an importance matrix a release is what llama.cpp's own quantizer makes with it, and is kept if it is
nearer to what was trained."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance import durable
from appliance.child_records import TrainedBehaviour
from appliance.errors import CorruptState
from tests.children import make_adapter, reported
from tests.release import families
from tests.release.reference import assert_same_tensors, reference_release
from tests.release.specs import base_spec, refusal_of, release, trained_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.llama,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

GAINING = ["Q2_K", "Q4_K_M", "Q5_K_M", "Q6_K"]


@pytest.fixture(scope="module")
def wide(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose columns divide by 256, but for one matrix of each layer; random weights."""
    directory = tmp_path_factory.mktemp("wide")
    families.llama(starter, directory)
    return directory


@pytest.fixture(scope="module")
def wide_file(wide: Path, converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = base_spec(wide, converter, quantizations=["Q8_0"])
    (file,) = release(tmp_path_factory.mktemp("wide-file"), spec).files
    return Path(file.path)


@pytest.fixture(scope="module")
def wide_adapter(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_adapter(wide, tmp_path_factory.mktemp("wide-adapter"), deviation=0.02)
    write_importance(wide, directory, directory / "importance.safetensors")
    return directory


def write_importance(base: Path, adapter: Path, path: Path) -> None:
    """What the trainer writes, over the answers that it wrote down."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from appliance.training import importance
    from tests.training.test_importance import examples

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, adapter)
    behaviour = durable.read_json(adapter / "behaviour.json", TrainedBehaviour)
    rows = [list(each.token_ids) for each in behaviour.rows]
    importance.record(adapted, examples(*rows), path, lambda: None)


def weighted_spec(
    base: Path, base_file: Path, adapter: Path, converter: Path, asked: str, types: list[str]
) -> dict[str, Any]:
    spec = trained_spec(base, base_file, adapter, converter, quantizations=types)
    spec["trained"]["importance_file"] = str(adapter / "importance.safetensors")
    spec["trained"]["importance_matrix"] = asked
    return spec


def quantize_with(
    source: Path, destination: Path, kind: str, importance: Mapping[str, Any]
) -> None:
    """llama.cpp's own quantizer, given the matrix by its tensors' names."""
    import llama_cpp
    import numpy as np

    names = [name.encode() for name in importance]
    values = [np.ascontiguousarray(each, np.float32) for each in importance.values()]
    entries = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name, each in zip(entries, names, values, strict=False):
        entry.name = name
        entry.data = each.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = each.size
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 2
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.imatrix = entries
    arguments = (str(source).encode(), str(destination).encode(), ctypes.byref(params))
    assert llama_cpp.llama_model_quantize(*arguments) == 0


def test_every_type_that_gains_equals_llama_cpps_own_quantizer(
    wide: Path, wide_file: Path, wide_adapter: Path, converter: Path, tmp_path: Path
) -> None:
    from appliance.release import importance

    spec = weighted_spec(wide, wide_file, wide_adapter, converter, "on", [*GAINING, "Q8_0"])
    result = release(tmp_path / "ours", spec)
    theirs = reference_release(wide, wide_adapter, converter, tmp_path / "theirs", ["Q4_K_M"])

    found = importance.read(wide_adapter / "importance.safetensors")
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    by_tensor = {
        f"blk.{layer}.{ours}.weight": found.by_weight[f"model.layers.{layer}.{theirs_}.weight"]
        for layer in range(4)
        for theirs_, ours in parts.items()
    }
    assert len(by_tensor) == len(found.by_weight) == 28
    compared = 0
    for file in result.files:
        other = tmp_path / f"{file.quantization}.gguf"
        if file.quantization == "Q8_0":
            assert file.importance is None
            continue
        quantize_with(theirs / "float.gguf", other, file.quantization, by_tensor)
        assert_same_tensors(Path(file.path), other)
        assert file.importance is not None
        assert file.importance.used
        compared += 1
    assert compared == 4
    plain = theirs / "model-Q4_K_M.gguf"
    (four,) = [each for each in result.files if each.quantization == "Q4_K_M"]
    assert Path(four.path).read_bytes() != plain.read_bytes()
    assert {path.name for path in (tmp_path / "ours").glob("*.gguf")} == {
        "adapter.gguf",
        *(f"model-{kind}.gguf" for kind in [*GAINING, "Q8_0"]),
    }


@pytest.mark.parametrize("helps", [True, False])
def test_auto_keeps_what_is_nearer_to_the_trained_model(
    wide: Path, wide_file: Path, wide_adapter: Path, converter: Path, tmp_path: Path, helps: bool
) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    plain_spec = trained_spec(wide, wide_file, wide_adapter, converter, quantizations=["Q4_K_M"])
    (plain,) = release(tmp_path / "plain", plain_spec).files
    spec = weighted_spec(wide, wide_file, wide_adapter, converter, "auto", ["Q4_K_M"])
    path = tmp_path / "importance.safetensors"
    matters = load_file(wide_adapter / "importance.safetensors")
    if not helps:
        # As if only one input of each layer mattered.
        matters = {name: np.full_like(each, 1e-9) for name, each in matters.items()}
        for each in matters.values():
            each[0] = 1.0
    save_file(matters, path, {"tokens": "50"})
    spec["trained"]["importance_file"] = str(path)
    (file,) = release(tmp_path / "ours", spec).files
    use = file.importance
    assert use is not None
    assert use.tokens == 50
    assert use.used == helps == (use.kl_with < use.kl_without)
    assert (file.sha256 == plain.sha256) == (not helps)
    (line,) = [each for each in reported(tmp_path / "ours") if each["key"] == "importance:Q4_K_M"]
    assert ("is used" in line["message"]) == helps
    assert line["data"]["kl_with"] == use.kl_with
    spec["trained"]["importance_matrix"] = "on"
    (forced,) = release(tmp_path / "forced", spec).files
    assert forced.importance is not None
    assert forced.importance.used
    assert forced.sha256 != plain.sha256


@pytest.mark.parametrize(
    ("asked", "nearer", "plain_keeps", "weighted_keeps", "used"),
    [
        ("auto", True, True, True, True),
        ("auto", False, True, True, False),
        # Nearer, and without the adapter, as a coarse type can be.
        ("auto", True, True, False, False),
        ("auto", False, False, True, True),
        ("auto", True, False, False, False),
        ("on", False, True, False, True),
    ],
)
def test_what_has_lost_the_adapter_is_kept_only_where_it_was_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: Any,
    nearer: bool,
    plain_keeps: bool,
    weighted_keeps: bool,
    used: bool,
) -> None:
    from appliance.release import importance

    plain, weighted = tmp_path / "plain", tmp_path / "weighted"
    plain.write_text("plain")
    weighted.write_text("weighted")
    distances = {plain: 0.2, weighted: 0.1 if nearer else 0.3}
    monkeypatch.setattr(importance, "_divergence", lambda path, *_: distances[path])
    use = importance.settle(
        plain,
        weighted,
        asked,
        7,
        (),
        keeps_adapter=(plain_keeps, weighted_keeps),
        threads=1,
        alive=lambda: None,
    )
    assert use.used == used
    assert (use.tokens, use.kl_without, use.kl_with) == (7, 0.2, distances[weighted])
    assert plain.read_text() == ("weighted" if used else "plain")
    assert not weighted.exists()


@pytest.mark.parametrize("fault", ["missing", "garbage", "negative", "nan", "shape", "untold"])
def test_a_damaged_one_is_told(
    wide: Path, wide_file: Path, wide_adapter: Path, converter: Path, tmp_path: Path, fault: str
) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "importance.safetensors"
    matters = load_file(wide_adapter / "importance.safetensors")
    name = next(iter(matters))
    changes: dict[str, Any] = {
        "negative": -matters[name],
        "nan": matters[name] * np.nan,
        "shape": matters[name][:-1].copy(),
    }
    if fault == "garbage":
        path.write_bytes(b"garbage")
    elif fault != "missing":
        matters[name] = changes.get(fault, matters[name])
        save_file(matters, path, {} if fault == "untold" else {"tokens": "5"})
    spec = weighted_spec(wide, wide_file, wide_adapter, converter, "on", ["Q4_K_M"])
    spec["trained"]["importance_file"] = str(path)
    failure = refusal_of(tmp_path / "release", spec)
    expected = "quantization_failed" if fault == "shape" else "unreadable_file"
    assert failure.code == expected, json.dumps(failure.message)


def test_names_of_the_file_are_read_as_they_are_written(wide_adapter: Path) -> None:
    from appliance.release import importance

    found = importance.read(wide_adapter / "importance.safetensors")
    assert found.tokens > 50
    assert all(each.min() >= 0 for each in found.by_weight.values())
    with pytest.raises(CorruptState):
        importance.read(wide_adapter / "nowhere")
