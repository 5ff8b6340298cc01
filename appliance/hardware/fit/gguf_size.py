"""How large a GGUF file will be.

The mix of types is llama.cpp's (src/llama-quant.cpp, llama_tensor_get_type_impl, as of llama-cpp-python
0.3.36); bytes of a block are ggml's (gguf.constants.GGML_QUANT_SIZES). For dense models without an importance
matrix, which changes no size of these types.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.hardware.fit.shapes import Linear, ModelShape

# Elements and bytes of a block.
_BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
# Where a row is no whole number of super-blocks (tensor_type_fallback in the same file).
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# The type of a mix for a tensor that no rule raises.
_DEFAULT = {
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q2_K": "Q2_K",
    "Q3_K_M": "Q3_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
}
MIXES = tuple(_DEFAULT)
_ALIGNMENT_BYTES = 32
# Tokens, their types and merges: 36.3 in the starter model's file, with a vocabulary of 49,152.
_HEADER_BYTES_PER_TOKEN = 36.3
# Eight heads share one value tensor, which gets more bits (LLM_TYPE_70B: 80 layers).
_LAYERS_OF_70B = 80


def file_bytes(shape: ModelShape, mix: str) -> int:
    """Bytes of the file; raises KeyError for a mix that is not in MIXES."""
    header = round(_HEADER_BYTES_PER_TOKEN * shape.vocab_size)
    return header + sum(tensor_bytes(shape, mix))


def tensor_bytes(shape: ModelShape, mix: str) -> Iterator[int]:
    """Bytes of every tensor, padded as in the file."""
    return (-(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for size in _sizes(shape, mix))


def _sizes(shape: ModelShape, mix: str) -> Iterator[int]:
    yield from (4 * length for length in shape.vectors)
    # The output head, which may be the embeddings, too.
    yield _embedding_bytes(shape, mix if mix in ("F16", "BF16", "Q8_0") else "Q6_K")
    if not shape.tie_word_embeddings:
        yield _embedding_bytes(shape, _DEFAULT[mix])
    for layer in range(shape.num_hidden_layers):
        for linear in shape.linears:
            kind = _type(shape, mix, linear, layer)
            yield _matrix_bytes(linear.inputs, linear.outputs, kind)


def _embedding_bytes(shape: ModelShape, kind: str) -> int:
    return _matrix_bytes(shape.hidden_size, shape.vocab_size, kind)


def _matrix_bytes(columns: int, rows: int, kind: str) -> int:
    if columns % _BLOCKS[kind][0]:
        kind = _FALLBACK.get(kind, "F16")
    elements, size = _BLOCKS[kind]
    return columns // elements * size * rows


def _type(shape: ModelShape, mix: str, linear: Linear, layer: int) -> str:
    layers = shape.num_hidden_layers
    more = _gets_more_bits(layer, layers)
    kind = _DEFAULT[mix]
    match linear.name, mix:
        case "attn_v", "Q2_K":
            shared_by = shape.num_attention_heads // shape.num_key_value_heads
            kind = "Q4_K" if shared_by >= 4 else "Q3_K"
        case "attn_v", "Q3_K_M":
            kind = "Q5_K" if layer < 2 else "Q4_K"
        case "ffn_down", "Q3_K_M":
            kind = "Q5_K" if layer < layers // 16 else "Q4_K"
        case (("attn_v" | "ffn_down"), ("Q4_K_M" | "Q5_K_M")) if more:
            kind = "Q6_K"
        case (("ffn_down" | "attn_output"), "Q2_K"):
            kind = "Q3_K"
        case "attn_output", "Q3_K_M":
            kind = "Q4_K"
    if linear.name == "attn_v" and layers == _LAYERS_OF_70B and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return kind


def _gets_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
