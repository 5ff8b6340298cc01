"""The shape of a dense decoder-only transformer, which is all that its memory follows from.

Names are those of a Hugging Face `config.json`. Covers the Llama, Mistral, Qwen 2 and Qwen 3 families: gated
feed-forward blocks, grouped-query attention, no experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.errors import UNDECODABLE

# Larger ones are no model's; their products would not be numbers of bytes any more.
Size = Annotated[int, Meta(ge=1, le=1 << 24)]
# Each is gone through by itself; the deepest published have some hundred.
Layers = Annotated[int, Meta(ge=1, le=1 << 12)]
# What follows from the family alone, and stands in no configuration.
_FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"attention_bias": True},
    "qwen3": {"query_key_norm": True},
}


class Linear(msgspec.Struct, frozen=True):
    """One kind of linear layer, which every block has: its name in llama.cpp, inputs and outputs."""

    name: str
    inputs: int
    outputs: int


class ModelShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes in elements."""

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    intermediate_size: Size
    vocab_size: Size
    tie_word_embeddings: bool
    # Qwen 2 adds them to queries, keys and values; Qwen 3 normalizes queries and keys instead.
    attention_bias: bool = False
    query_key_norm: bool = False

    @property
    def query_size(self) -> int:
        """All query heads side by side; the attention output has as many inputs."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """All key heads, or all value heads, side by side."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one block: what NF4 and LoRA apply to."""
        hidden, wide = self.hidden_size, self.intermediate_size
        return (
            Linear("attn_q", hidden, self.query_size),
            Linear("attn_k", hidden, self.key_value_size),
            Linear("attn_v", hidden, self.key_value_size),
            Linear("attn_output", self.query_size, hidden),
            Linear("ffn_gate", hidden, wide),
            Linear("ffn_up", hidden, wide),
            Linear("ffn_down", wide, hidden),
        )

    def adapter_parameters(self, r: int) -> int:
        """Of an adapter on every linear layer: r inputs and r outputs each (LoRA, arXiv:2106.09685)."""
        return r * self.num_hidden_layers * sum(each.inputs + each.outputs for each in self.linears)

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all blocks."""
        return self.num_hidden_layers * sum(each.inputs * each.outputs for each in self.linears)

    @property
    def embedding_parameters(self) -> int:
        """Token embeddings, and the output head where it is not the same."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def vectors(self) -> Iterator[int]:
        """Lengths of what is no matrix: norms and biases, which stay in 32 bits in a GGUF file."""
        yield self.hidden_size
        for _ in range(self.num_hidden_layers):
            yield from (self.hidden_size, self.hidden_size)
            if self.attention_bias:
                yield from (self.query_size, self.key_value_size, self.key_value_size)
            if self.query_key_norm:
                yield from (self.head_dim, self.head_dim)

    @property
    def parameters(self) -> int:
        """All of them, tied ones counted once."""
        return self.linear_parameters + self.embedding_parameters + sum(self.vectors)


def of_config(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a `config.json` describes; None if it is of no family that is known here.

    transformers' own defaults hold for what may be left out: as many key heads as query heads, which share
    the hidden size among them.
    """
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return None
    given = {name: config[name] for name in ModelShape.__struct_fields__ if name in config}
    try:
        heads = given["num_attention_heads"]
        given.setdefault("num_key_value_heads", heads)
        if given.get("head_dim") is None:
            given["head_dim"] = given["hidden_size"] // heads
        given.setdefault("tie_word_embeddings", False)
        return msgspec.convert({**given, **family}, ModelShape)
    except (KeyError, TypeError, ArithmeticError, *UNDECODABLE):
        return None
