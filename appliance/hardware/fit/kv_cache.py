"""How much memory the keys and values of a served model's context take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.errors import UNDECODABLE
from appliance.hardware.fit.shapes import Layers, ModelShape, Size

KvType = Literal["f16", "q8_0"]
# Bytes of an element in ggml's types: q8_0 has 34 bytes for 32 elements.
_ELEMENT_BYTES = {"f16": 2.0, "q8_0": 34 / 32}


def cache_bytes(shape: ModelShape, n_ctx: int, kv_type: KvType) -> int:
    """Bytes for `n_ctx` tokens, all sequences together; one key and one value a layer and token."""
    elements = 2 * shape.num_hidden_layers * shape.key_value_size * n_ctx
    return round(elements * _ELEMENT_BYTES[kv_type])


_Heads = Annotated[int, Meta(ge=0, le=1 << 24)]


class _Attention(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF file's metadata says of it (ggml/docs/gguf.md). Heads may differ from layer to layer."""

    block_count: Layers
    context_length: Size
    embedding_length: Size
    head_count: _Heads | list[_Heads]
    head_count_kv: _Heads | list[_Heads] | None = None
    key_length: Size | None = None
    value_length: Size | None = None


def cache_bytes_of_file(metadata: Mapping[str, Any], n_ctx: int) -> int | None:
    """Bytes for a GGUF file of any architecture, in 16 bits; None if the metadata does not say.

    At most: where llama.cpp keeps less, of a sliding window for one, that is not counted.
    """
    prefix = f"{metadata.get('general.architecture')}."
    named = {key.removeprefix(prefix).removeprefix("attention."): metadata[key] for key in metadata}
    try:
        found = msgspec.convert(named, _Attention)
        heads = _by_layer(found.head_count, found.block_count)
        # llama.cpp's own defaults: a key head for each query head, which share the embedding among them.
        head_size = found.embedding_length // max(heads)
        given = heads if found.head_count_kv is None else found.head_count_kv
        key_heads = _by_layer(given, found.block_count)
    except (ArithmeticError, ValueError, *UNDECODABLE):
        return None
    width = (found.key_length or head_size) + (found.value_length or head_size)
    return 2 * sum(key_heads) * width * min(n_ctx, found.context_length)


def _by_layer(heads: int | list[int], layers: int) -> list[int]:
    return heads if isinstance(heads, list) else [heads] * layers
