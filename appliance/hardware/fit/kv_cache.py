"""How much memory the keys and values of a served model's context take."""

from __future__ import annotations

from typing import Literal

from appliance.hardware.fit.shapes import ModelShape

# Bytes of an element in ggml's types: q8_0 has 34 bytes for 32 elements.
_ELEMENT_BYTES = {"f16": 2.0, "q8_0": 34 / 32}


def cache_bytes(shape: ModelShape, n_ctx: int, kv_type: Literal["f16", "q8_0"]) -> int:
    """Bytes for `n_ctx` tokens, all sequences together; one key and one value a layer and token."""
    elements = 2 * shape.num_hidden_layers * shape.key_value_size * n_ctx
    return round(elements * _ELEMENT_BYTES[kv_type])
