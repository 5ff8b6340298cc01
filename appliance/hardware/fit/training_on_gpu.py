"""Peak memory of a training on a GPU, as the allocator counts it: what PyTorch calls allocated.

The terms are those of a transformer trained with activation checkpoints, and no constant of them was fitted;
tests/hardware/fit/test_training_on_gpu.py holds them against published measurements. **Not tried on a GPU
here.** CPUs are another matter: their allocator and kernels keep other things.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from appliance.hardware.fit.shapes import ModelShape

# NF4: half a byte, and one scale for 64 weights: in 32 bits, or in 8 with one more in 32 bits for 256 of them
# (QLoRA, arXiv:2305.14314, section 3).
_NF4_BYTES = 0.5
_SCALE_BYTES = 4 / 64
_DOUBLE_SCALE_BYTES = 1 / 64 + 4 / (64 * 256)
# Logits, their 32-bit copy, their gradient and the softmax of it are held at once.
_FULL_LOGITS_BYTES = 4 * 4
# TRL's fused head: 4096 positions by 32768 entries of the vocabulary at a time, in 16 bits.
_TILE_POSITIONS, _TILE_VOCABULARY = 4096, 32768
_BF16_BYTES = 2


class TrainingSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What, besides the model, decides how much is held.

    `tokens` are those of a micro-batch, padding included. `targets` are the linear layers with an adapter, by
    llama.cpp's names. `*_bytes` are those of one element: of the embeddings, of what a block hands to the
    next one, of an adapter's weight with its gradient, and of the optimizer's state of it.
    """

    technique: Literal["qlora", "lora"]
    tokens: int
    r: int
    targets: tuple[str, ...] = (
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    )
    double_quantization: bool = True
    embedding_bytes: int = 2
    residual_bytes: int = 2
    dropout: bool = False
    adapter_bytes: int = 4
    optimizer_bytes: float = 8.0
    logits: Literal["full", "fused"] = "fused"


def allocated_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Peak of allocated memory in bytes."""
    return round(
        weight_bytes(shape, setup)
        + adapter_parameters(shape, setup) * (setup.adapter_bytes + setup.optimizer_bytes)
        + checkpoint_bytes(shape, setup)
        + max(_logits_bytes(shape, setup), _block_bytes(shape, setup))
        + _dequantized_bytes(shape, setup)
    )


def weight_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """The frozen base: linear layers in NF4 or in 16 bits, the rest as `embedding_bytes` says."""
    scale = _DOUBLE_SCALE_BYTES if setup.double_quantization else _SCALE_BYTES
    linear = _NF4_BYTES + scale if setup.technique == "qlora" else _BF16_BYTES
    other = shape.parameters - shape.linear_parameters
    return shape.linear_parameters * linear + other * setup.embedding_bytes


def adapter_parameters(shape: ModelShape, setup: TrainingSetup) -> int:
    """r inputs and r outputs for each layer with an adapter (LoRA, arXiv:2106.09685)."""
    sides = sum(each.inputs + each.outputs for each in shape.linears if each.name in setup.targets)
    return setup.r * sides * shape.num_hidden_layers


def checkpoint_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """The residual stream before each block, kept for the backward pass."""
    return shape.num_hidden_layers * setup.tokens * shape.hidden_size * setup.residual_bytes


def _block_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Activations of the one block that is computed again."""
    width = (
        4 * shape.hidden_size
        + 2 * shape.query_size
        + 2 * shape.key_value_size
        + 3 * shape.intermediate_size
    )
    if setup.dropout:
        # As on a CPU: a mask of each layer's input, in the adapter's format, and inputs that are not shared.
        inputs = sum(each.inputs for each in shape.linears)
        width += inputs * (1 if setup.technique == "qlora" else 2) + 4 * shape.hidden_size
    return _BF16_BYTES * setup.tokens * width


def _logits_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    if setup.logits == "full":
        return _FULL_LOGITS_BYTES * setup.tokens * shape.vocab_size
    # Three 16-bit copies of the hidden states beside it.
    tile = min(setup.tokens, _TILE_POSITIONS) * min(shape.vocab_size, _TILE_VOCABULARY)
    return tile * _BF16_BYTES + 3 * _BF16_BYTES * setup.tokens * shape.hidden_size


def _dequantized_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """The largest layer in 16 bits, and its gradient's share, in the backward pass of QLoRA."""
    if setup.technique != "qlora":
        return 0
    return 2 * _BF16_BYTES * max(each.inputs * each.outputs for each in shape.linears)
