from __future__ import annotations

import pytest

from appliance.basemodels import counts


@pytest.mark.parametrize(
    "key",
    [
        "num_hidden_layers",
        "num_layers",
        "n_layer",
        "n_layers",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "num_nextn_predict_layers",
        "llama.block_count",
        "qwen3moe.expert_count",
        "gpt-oss.block_count",
        "decoder_layers",
        "moe_num_experts",
    ],
)
def test_a_number_of_parts_is_held_against_the_tensors(key: str) -> None:
    assert list(counts.faults({key: 20}, 20)) == []
    for wrong in (21, -1, 1e30, float("nan"), float("inf"), 10**400):
        (fault,) = counts.faults({key: wrong}, 20)
        assert f"{key} should be at most 20" in fault
        (fault,) = counts.faults({"nested": {"deeper": {key: wrong}}}, 20)


def test_other_numbers_are_left_alone() -> None:
    described = {
        "vocab_size": 10**6,
        "hidden_size": 4096,
        "num_experts_per_tok": 64,
        "max_window_layers": 70,
        "num_attention_heads": 64,
        "layer_types": ["full_attention"],
        "num_hidden_layers": None,
        "block_size": 10**6,
    }
    assert list(counts.faults(described, 20)) == []
