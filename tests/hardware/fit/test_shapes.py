"""A shape comes from a configuration that somebody else wrote: what is no shape is none."""

from __future__ import annotations

import pytest

from appliance.hardware.fit.shapes import ModelShape, of_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rope_theta": 1e5,
}


def test_what_may_be_left_out_has_the_defaults_of_transformers():
    shape = of_config(LLAMA)
    assert shape.head_dim == 64
    assert shape.parameters == 134_515_008
    bare = {name: LLAMA[name] for name in LLAMA if "key" not in name and "tie" not in name}
    assert of_config(bare).num_key_value_heads == 9
    assert not of_config(bare).tie_word_embeddings
    assert of_config({**LLAMA, "head_dim": None}) == shape


@pytest.mark.parametrize(
    ("family", "bias", "norm"),
    [
        ("llama", False, False),
        ("mistral", False, False),
        ("qwen2", True, False),
        ("qwen3", False, True),
    ],
)
def test_what_the_family_adds_is_known(family, bias, norm):
    shape = of_config({**LLAMA, "model_type": family})
    assert (shape.attention_bias, shape.query_key_norm) == (bias, norm)


FAULTS = [
    {"model_type": "mixtral"},
    {"model_type": None},
    {"model_type": ["llama"]},
    {"hidden_size": 0},
    {"hidden_size": -576},
    {"hidden_size": "576"},
    {"hidden_size": 1 << 40},
    {"hidden_size": 57.5},
    {"num_attention_heads": 0},
    {"num_attention_heads": None},
    {"vocab_size": True},
    {"tie_word_embeddings": "yes"},
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_what_is_no_shape_is_none(fault):
    assert of_config({**LLAMA, **fault}) is None


@pytest.mark.parametrize("name", sorted(set(LLAMA) - {"num_key_value_heads", "rope_theta"}))
def test_what_is_missing_is_not_made_up(name):
    without = {key: value for key, value in LLAMA.items() if key != name}
    shape = of_config(without)
    assert shape is None or (name == "tie_word_embeddings" and isinstance(shape, ModelShape))
