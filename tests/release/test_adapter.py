from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ChildFailed

pytestmark = pytest.mark.torch

MODULES = ("layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "layers.10.mlp.up_proj")


def write(directory: Path, *, rank: int = 4, extra: str | None = None, **changes: Any) -> Path:
    """A PEFT adapter with a pair for each of MODULES, of `rank`."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir()
    tensors = {}
    for module in MODULES:
        name = f"base_model.model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 6)
        tensors[f"{name}.lora_B.weight"] = torch.randn(5, rank)
    if extra is not None:
        tensors[extra] = torch.randn(rank, 6)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **changes}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def scalings(directory: Path) -> list[float]:
    from appliance.release import adapter

    pairs = adapter.read(directory)
    assert pairs.keys() == {f"model.{module}.weight" for module in MODULES}
    return [pairs[f"model.{module}.weight"].scaling for module in MODULES]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [2, 2, 2]),
        ({"use_rslora": True}, [4, 4, 4]),
        ({"lora_alpha": 4}, [1, 1, 1]),
        ({"alpha_pattern": {"layers.1.mlp.up_proj": 16}}, [2, 4, 2]),
        # The first that fits counts, and a pattern is the end of a name, from a dot on.
        ({"alpha_pattern": {"up_proj": 4, "layers.1.mlp.up_proj": 16}}, [1, 1, 1]),
        ({"alpha_pattern": {"0.mlp.up_proj": 16}}, [4, 2, 2]),
        ({"alpha_pattern": {r"layers\.1\d.*": 16}}, [2, 2, 4]),
    ],
)
def test_scale_is_what_peft_computes(
    changes: dict[str, Any], expected: list[float], tmp_path: Path
) -> None:
    assert scalings(write(tmp_path / "a", **changes)) == expected


def test_ranks_may_differ_by_pattern(tmp_path: Path) -> None:
    directory = write(tmp_path / "a", rank=2, rank_pattern={"up_proj": 2})
    assert scalings(directory) == [4, 4, 4]


def test_merged_is_what_peft_merges(tmp_path: Path) -> None:
    import torch

    from appliance.release import adapter

    pair = adapter.read(write(tmp_path / "a"))["model.layers.1.mlp.up_proj.weight"]
    weight = torch.randn(5, 6, dtype=torch.bfloat16)
    expected = weight.float() + (pair.b @ pair.a) * 2.0
    assert torch.equal(pair.add_to(weight), expected)
    assert pair.add_to(weight).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "it is LOHA"),
        ({"bias": "all"}, "bias 'all'"),
        ({"use_dora": True}, "uses use_dora"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"fan_in_fan_out": True}, "uses fan_in_fan_out"),
        ({"r": 8}, "should have rank 8"),
        ({"rank_pattern": {"layers.1.mlp.up_proj": 2}}, "layers.1.mlp.up_proj should have rank 2"),
        ({"extra": "base_model.model.model.embed_tokens.lora_embedding_A"}, "lora_embedding_A"),
        ({"extra": "base_model.model.model.norm.weight"}, "norm.weight"),
        ({"extra": "base_model.model.lm_head.lora_A.weight"}, "lm_head has ['A'] alone"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from appliance.release import adapter

    with pytest.raises(ChildFailed) as refused:
        adapter.read(write(tmp_path / "a", **changes))
    assert refused.value.code == "release_check_failed"
    assert words in refused.value.message


def test_an_adapter_without_pairs_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from appliance.release import adapter

    save_file({}, write(tmp_path / "a") / adapter.WEIGHTS)
    with pytest.raises(ChildFailed, match="holds none"):
        adapter.read(tmp_path / "a")


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"1.mlp.up_proj": 24}}],
    ids=["plain", "rslora", "pattern"],
)
def test_scale_equals_that_of_peft_itself(changes: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    from appliance.release import adapter

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(6, 5)})

    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Block(), Block()])})
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["up_proj"], **changes)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path)
    expected = {
        name.removeprefix("base_model.model.") + ".weight": module.scaling["default"]
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    found = {name: pair.scaling for name, pair in adapter.read(tmp_path).items()}
    assert found == expected
    assert len(found) == 2
