"""What matters to a layer is the mean square of its inputs, over rows as they were trained on."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.children import reported, run_child
from tests.training.conftest import _spec as spec_of

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


def adapted(tiny: Path, **options: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    config = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    return get_peft_model(model, LoraConfig(**config))


def examples(*rows: list[int]) -> list[Any]:
    from appliance.training.rows import Example

    return [
        Example(line=n, input_ids=array("i", ids), labels=array("i", ids))
        for n, ids in enumerate(rows, 1)
    ]


def record(model: Any, path: Path, rows: list[Any]) -> tuple[int, dict[str, Any]]:
    from safetensors import safe_open

    from appliance.training import importance

    count = importance.record(model, rows, path, lambda: None)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"tokens": str(count)}
        return count, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# All linear layers have a LoRA pair, or some have none: their inputs count all the same.
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_it_is_the_mean_square_of_the_inputs(tiny: Path, tmp_path: Path, targets: Any) -> None:
    import torch

    model = adapted(tiny, target_modules=targets)
    rows = [[1, 4093, 198, 26843, 2], [9, 7]]
    count, found = record(model, tmp_path / "importance", examples(*rows))
    assert count == 7
    assert len(found) == 14
    assert not any("lora" in name or "base_layer" in name or "head" in name for name in found)

    # Of the first layer's queries: the embeddings after the norm.
    inner = model.base_model.model.model
    with torch.inference_mode():
        states = inner.embed_tokens(torch.tensor([each for row in rows for each in row]))
        inputs = inner.layers[0].input_layernorm(states)
    expected = inputs.double().square().mean(0)
    for name in ("q_proj", "k_proj", "v_proj"):
        values = found[f"model.layers.0.self_attn.{name}.weight"]
        assert values.dtype == torch.float32
        assert torch.allclose(values.double(), expected, rtol=1e-4)
    assert found["model.layers.1.mlp.down_proj.weight"].shape == (128,)
    # The hooks are gone.
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_rows_are_taken_from_all_of_the_data_up_to_a_number_of_tokens(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.training import importance

    model = adapted(tiny)
    monkeypatch.setattr(importance, "MOST_ROWS", 2)
    rows = [[5, 6], [7, 8], [9, 10], [11, 12]]
    count, some = record(model, tmp_path / "some", examples(*rows))
    assert count == 4
    _, expected = record(model, tmp_path / "expected", examples(rows[0], rows[2]))
    name = "model.layers.0.mlp.up_proj.weight"
    assert some[name].tolist() == expected[name].tolist()
    monkeypatch.setattr(importance, "MOST_TOKENS", 3)
    assert record(model, tmp_path / "cut", examples(*rows))[0] == 3


@pytest.mark.parametrize("wanted", [False, True])
def test_a_training_leaves_it_where_it_is_wanted(
    tiny: Path, train_file: Path, tmp_path: Path, wanted: bool
) -> None:
    asked = spec_of(tiny, train_file, num_train_epochs=1) | {"importance_matrix": wanted}
    done = run_child("appliance.training", tmp_path, asked)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "importance.safetensors").exists() == wanted
    assert ("importance" in {line["key"] for line in reported(tmp_path)}) == wanted
