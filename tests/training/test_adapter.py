from __future__ import annotations

import pytest

from appliance.errors import ChildFailed
from tests.exports.records import HYPERPARAMETERS

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_a_mixture_of_experts_is_refused_before_it_is_trained() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    from appliance.training import adapter

    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    with pytest.raises(ChildFailed, match="without experts") as refused:
        adapter.attach_fresh(model, HYPERPARAMETERS)
    assert refused.value.code == "experts_not_supported"


def test_every_linear_layer_but_the_head_has_a_pair() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from appliance.training import adapter

    adapted = adapter.attach_fresh(LlamaForCausalLM(LlamaConfig(**SIZES)), HYPERPARAMETERS)
    trained = {name for name, each in adapted.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 7
    assert not any("lm_head" in name for name in trained)
