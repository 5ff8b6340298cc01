"""How much memory training, release and serving of a model take on a given machine, and release on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from appliance.compute import padded
from appliance.hardware.device import Family
from appliance.hardware.fit import gguf_size, training_on_cpu, training_on_gpu
from appliance.hardware.fit.kv_cache import KvType, cache_bytes
from appliance.hardware.fit.machine import Machine
from appliance.hardware.fit.shapes import ModelShape
from appliance.records import Hyperparameters, Technique

MIB = 1 << 20
# What a process takes of a GPU for what is allocated, and for its CUDA context. Published measurements (T4,
# A100; tests/hardware/fit/test_training_on_gpu.py) are predicted from 6 % under, where they are given in
# whole GB, to 18 % over. **Not tried on a GPU here.**
_GPU_RESERVED = 1.15
_CUDA_CONTEXT_BYTES = 512 * MIB
# The training process's own memory beside the GPU's: Python, torch and the others.
_HOST_PROCESS_BYTES = 540 * MIB
# The engine with its buffers, without file and cache: 60 MiB measured with 135 million parameters, 93 with
# a billion, whatever the context. llama.cpp copies tensors into the order in which the CPU multiplies them
# best, and then needs their part of the file no more.
_ENGINE_BYTES = 96 * MIB
# On a GPU all buffers are taken at the start: scores of a batch of 512 tokens over the vocabulary are 0.3 GB
# for the largest. By arithmetic: **not tried on a GPU here.**
_ENGINE_ON_GPU_BYTES = _CUDA_CONTEXT_BYTES + 512 * MIB
# What the adapters that are attached to a base may take together: of rank 16 on every layer, one takes 1 %
# to 4 % of the parameters, in 16 bits (for 135 million 9.8 MB, for 8 billion 84 MB).
ADAPTERS_LEAST_BYTES = 64 * MIB
ADAPTERS_PART_OF_FILE = 8
# The release child holds one tensor at a time, in 32 bits; one that is merged twice, since it is put in
# llama.cpp's order. Measured, without what is mapped: 321, 442 and 644 MiB with 135, 362 and 1,074 million
# parameters, whose largest tensors have 108, 180 and 384 MiB in 32 bits; the same with 8, 16 and 32 layers.
_RELEASE_PROCESS_BYTES = 260 * MIB
# A base that comes in is converted by llama.cpp's converter, which makes 16 bits of the 32 in numpy: 340, 635
# and 1,041 MiB measured (the first is in 32 bits itself).
_CONVERTED_TENSORS = 2.1
_FLOAT32_BYTES = 4
# What a GGUF holds beside weights, at most; and how often an adapter alone is written: once more where its
# scales have to be others.
_GGUF_METADATA_BYTES = 32 * MIB
_ADAPTER_FILES = 2


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The rows to train on: no row has more tokens than `longest_row_tokens`."""

    longest_row_tokens: int
    bytes: int


def training_bytes(
    shape: ModelShape, technique: Technique, chosen: Hyperparameters, data: Data, machine: Machine
) -> int:
    """Of the device's memory, at the peak."""
    longest = padded(min(data.longest_row_tokens, chosen.max_length))
    rows = chosen.per_device_train_batch_size
    tokens = rows * longest
    if machine.family == "cpu":
        return training_on_cpu.peak(
            shape,
            training_on_cpu.CpuTraining(
                technique=technique,
                tokens=tokens,
                # To a multiple of 16 tokens at least.
                padded_rows=rows,
                r=chosen.r,
                accumulates=chosen.gradient_accumulation_steps > 1,
                dropout=chosen.lora_dropout > 0,
                bfloat16=machine.bfloat16,
                data_bytes=data.bytes,
            ),
        )
    setup = training_on_gpu.TrainingSetup(
        technique=technique,
        tokens=tokens,
        r=chosen.r,
        dropout=chosen.lora_dropout > 0,
        # In 16 bits on a 4-bit base, in 32 on any other: as on a CPU.
        adapter_bytes=4 if technique == "qlora" else 8,
    )
    # As on a CPU, for want of a measurement.
    mask_bytes = training_on_cpu.MASK_BYTES * rows * longest**2
    process = gpu_process_bytes(training_on_gpu.allocated_bytes(shape, setup) + mask_bytes)
    beside = _HOST_PROCESS_BYTES + training_on_cpu.data_bytes(data.bytes)
    return process + (beside if machine.family == "unified" else 0)


def gpu_process_bytes(allocated_bytes: int) -> int:
    """Of a GPU's memory, as a process that has so much allocated takes it."""
    return math.ceil(allocated_bytes * _GPU_RESERVED) + _CUDA_CONTEXT_BYTES


def release_bytes(shape: ModelShape) -> int:
    """Of the host's memory, for base and adapter: it does not grow with the number of layers."""
    linear = max(each.inputs * each.outputs for each in shape.linears)
    return _RELEASE_PROCESS_BYTES + _FLOAT32_BYTES * max(_embeddings(shape), 2 * linear)


def conversion_bytes(shape: ModelShape) -> int:
    """Of the host's memory, for a base that comes in."""
    largest = _FLOAT32_BYTES * _embeddings(shape)
    return _RELEASE_PROCESS_BYTES + round(_CONVERTED_TENSORS * largest)


def _embeddings(shape: ModelShape) -> int:
    return shape.vocab_size * shape.hidden_size


def disk_bytes(shape: ModelShape, mixes: Sequence[str], r: int) -> int:
    """Most that a release takes on disk: the model's files in `mixes`, and the adapter of rank `r`."""
    adapter = _ADAPTER_FILES * _FLOAT32_BYTES * shape.adapter_parameters(r)
    files = sum(gguf_size.file_bytes(shape, mix) + _GGUF_METADATA_BYTES for mix in mixes)
    return files + adapter


def engine_bytes(family: Family) -> int:
    """Of the device's memory, beside file and cache."""
    return _ENGINE_BYTES if family == "cpu" else _ENGINE_ON_GPU_BYTES


def shelf_bytes(cache_bytes: int, family: Family) -> int:
    """Of the device's memory, where that is the host's, for what the engine keeps of answers that have ended.

    As much as its cache, at most: that a model with a sliding window keeps nothing is not counted.
    """
    return 0 if family == "discrete" else cache_bytes


def adapter_budget_bytes(file_bytes: int) -> int:
    """Of the device's memory, for the adapters of a base whose file has so many bytes."""
    return max(ADAPTERS_LEAST_BYTES, file_bytes // ADAPTERS_PART_OF_FILE)


def serving_bytes(
    shape: ModelShape, file_bytes: int, n_ctx: int, kv_type: KvType, family: Family
) -> int:
    """Of the device's memory, with one context; the file is mapped and counts in full."""
    cache = cache_bytes(shape, n_ctx, kv_type)
    return file_bytes + cache + shelf_bytes(cache, family) + engine_bytes(family)
