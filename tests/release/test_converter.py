"""Which pairs find their weight among upstream's names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ChildFailed
from appliance.settings import CHECKOUT

pytestmark = pytest.mark.torch


class Upstream:
    """Drops pictures and a wrapper's name, as the converter's classes do."""

    @classmethod
    def filter_tensors(cls, item: tuple[str, Any]) -> tuple[str, Any] | None:
        name, gen = item
        return None if "vision" in name else (name.replace("language_model.", ""), gen)


def names(**values: float) -> dict[str, Any]:
    """Pairs whose second half is filled with a value; dots in names are written as two underscores."""
    import torch

    from appliance.release import converter
    from appliance.release.adapter import LoraPair

    pairs = {
        name.replace("__", "."): LoraPair(torch.ones(2, 4), torch.full((3, 2), value), 1.0)
        for name, value in values.items()
    }
    return converter._under_upstreams_names(Upstream, pairs)


def test_names_are_upstreams() -> None:
    assert list(names(language_model__q=1.0, k=1.0)) == ["q", "k"]


def test_what_no_gguf_has_is_left_out_if_it_was_never_trained() -> None:
    assert list(names(vision__q=0.0, q=1.0)) == ["q"]
    with pytest.raises(ChildFailed, match=r"vision\.q should be a weight") as refused:
        names(vision__q=0.1, q=1.0)
    assert refused.value.code == "release_check_failed"


def test_two_pairs_for_one_weight_are_refused() -> None:
    with pytest.raises(ChildFailed, match="has none of it"):
        names(language_model__q=1.0, q=1.0)


@pytest.mark.llama
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 2), (8, 2)), ((8, 1), (8,)), ((8, 1, 1), (8,)), ((1, 8), (1, 8)), ((1,), ()), ((), ())],
)
def test_ones_at_the_end_of_a_shape_say_nothing(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    from appliance.release import streaming

    assert streaming._significant(shape) == expected


@pytest.mark.slow
@pytest.mark.llama
def test_weights_that_become_several_tensors_have_no_name(
    starter: Path, converter: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import YoutuConfig, YoutuForCausalLM

    torch.manual_seed(0)
    config = YoutuConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=32,
        q_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    YoutuForCausalLM(config).save_pretrained(tmp_path / "base")
    for path in starter.iterdir():
        if "token" in path.name:
            shutil.copy(path, tmp_path / "base")
    argv = [sys.executable, "-m", "tests.release.tensor_names", tmp_path / "base", converter]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    layer = {name: found[name] for name in found if name.startswith("model.layers.1.")}
    # Which llama.cpp wants as two, for keys and for values.
    assert "model.layers.1.self_attn.kv_b_proj.weight" not in layer
    assert layer["model.layers.1.mlp.up_proj.weight"] == "blk.1.ffn_up.weight"
    assert layer["model.layers.1.self_attn.q_b_proj.weight"] == "blk.1.attn_q_b.weight"
    assert len(layer) == 11
