"""Peak memory of a training on a CPU: the child as it is, without activation checkpoints, on tcmalloc.

What a block keeps for the backward pass was counted (torch.autograd.graph.saved_tensors_hooks) and is
exact. The constants of the process, of the allocator and of masks were chosen after looking at the
measurements of tests/hardware/fit/trainings.py, and are held against the same cases there.
"""

from __future__ import annotations

import msgspec

from appliance.hardware.fit.shapes import ModelShape
from appliance.records import Technique

# Weights of NF4 with double quantization: half a byte, a scale in 8 bits for 64 of them, and one in 32 bits
# for 256 of those (QLoRA, arXiv:2305.14314, section 3).
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# A row that is padded has a mask of its attention, every token by every token: as truth values, as numbers,
# and what is made on the way. 8.7 measured with rows of 8,192 tokens.
MASK_BYTES = 9
# Python, torch and the others, a tile of logits, and what a block needs while it is computed: measured.
_PROCESS_BYTES = 530 << 20
# With blocks of the allocator that fit nothing any more: measured with rows of many lengths, and of one.
_FRAGMENTATION_RAGGED = 1.28
_FRAGMENTATION_UNIFORM = 1.06
# Two arrays of 32-bit tokens, the same in Arrow, and the rows' text, for each byte of the files: measured
# 5.6 for English, where a token is 5 bytes; other scripts have shorter ones.
_DATA_BYTES_PER_BYTE = 8


class CpuTraining(msgspec.Struct, frozen=True, kw_only=True):
    """What, besides the model, decides how much is held.

    `tokens` are those of the largest micro-batch, padding included, and `padded_rows` its rows that have any;
    `accumulates` says that an optimizer step has several micro-batches; `data_bytes` are the size of the
    files; `bfloat16` says what is computed in.
    """

    technique: Technique
    tokens: int
    padded_rows: int
    r: int
    accumulates: bool
    bfloat16: bool
    dropout: bool = False
    data_bytes: int = 0


def peak(shape: ModelShape, training: CpuTraining) -> int:
    """Peak bytes of the training child, weights that are mapped from a file included."""
    activations = training.tokens * shape.num_hidden_layers * _kept_bytes(shape, training)
    return round(
        _quantized_bytes(shape, training)
        + plain_weight_bytes(shape, training)
        + _adapter_bytes(training) * shape.adapter_parameters(training.r)
        + activations * (_FRAGMENTATION_RAGGED if training.padded_rows else _FRAGMENTATION_UNIFORM)
        + _mask_bytes(training)
        + data_bytes(training.data_bytes)
        + _PROCESS_BYTES
    )


def data_bytes(file_bytes: int) -> int:
    """What rows take in memory, tokenized, from the size of their files."""
    return file_bytes * _DATA_BYTES_PER_BYTE


def _adapter_bytes(training: CpuTraining) -> int:
    """Of one parameter: its weight and AdamW's two moments.

    TRL makes an adapter on a 4-bit base as wide as what is computed in; on any other, PEFT keeps 32 bits, and
    bfloat16 takes a copy. The gradient comes when activations have gone, unless it has to outlast the next
    micro-batch.
    """
    narrow = training.bfloat16 and training.technique == "qlora"
    width = 2 if narrow else 4
    copy = 2 if training.bfloat16 and not narrow else 0
    return 3 * width + copy + (width if training.accumulates else 0)


def _mask_bytes(training: CpuTraining) -> float:
    if not training.padded_rows:
        return 0
    return MASK_BYTES * training.tokens**2 / training.padded_rows


def _quantized_bytes(shape: ModelShape, training: CpuTraining) -> float:
    return shape.linear_parameters * _NF4_BYTES if training.technique == "qlora" else 0


def plain_weight_bytes(shape: ModelShape, training: CpuTraining) -> int:
    """Weights in the format that is computed in."""
    linear = 0 if training.technique == "qlora" else shape.linear_parameters
    return (shape.parameters - shape.linear_parameters + linear) * (2 if training.bfloat16 else 4)


def _kept_bytes(shape: ModelShape, training: CpuTraining) -> int:
    """Bytes that one block keeps of one token.

    In 16 bits: both norms' inputs as 32-bit copies; the adapters' own 16-bit copies of their layers'
    inputs, one for queries, keys and values together on a 4-bit base and one each otherwise; queries, keys,
    values and output of the attention; gate, up, their activation and product; what each adapter hands from
    its first matrix to its second. In 32 bits nothing is copied.
    """
    hidden, wide = shape.hidden_size, shape.intermediate_size
    attention = shape.query_size + shape.key_value_size
    handed_on = len(shape.linears) * training.r
    dropped = _dropout_bytes(shape, training) if training.dropout else 0
    if not training.bfloat16:
        return 16 * hidden + 16 * wide + 8 * attention + 4 * handed_on + dropped
    copies = 12 if training.technique == "qlora" else 20
    return copies * hidden + 8 * wide + 4 * attention + 2 * handed_on + dropped


def _dropout_bytes(shape: ModelShape, training: CpuTraining) -> int:
    """A mask of each layer's input, in the adapter's format; and inputs that are shared no more."""
    inputs = sum(each.inputs for each in shape.linears)
    if not training.bfloat16:
        return 4 * inputs + 16 * shape.hidden_size
    if training.technique == "lora":
        return 4 * inputs
    return 2 * inputs + 8 * shape.hidden_size
