"""Loads a base model for training: in NF4 with double quantization for QLoRA, in the compute format for LoRA.

Knows nothing of adapters or data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import safetensors
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from appliance.errors import CorruptState


def load_tokenizer(directory: Path) -> Any:
    """The model's own tokenizer; raises CorruptState unless it can give character offsets."""
    _require(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise _unusable(directory, exc) from exc
    if not tokenizer.is_fast:
        raise _unusable(directory, "its tokenizer has no tokenizer.json")
    return tokenizer


def load_model(directory: Path, technique: Literal["qlora", "lora"], dtype: torch.dtype) -> Any:
    """The causal language model on the accelerator, or on the CPU where there is none.

    `dtype` is what it computes in, and what everything that is not in NF4 is kept in.
    """
    _require(directory)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            quantization_config=_nf4(dtype) if technique == "qlora" else None,
            device_map={"": 0 if torch.cuda.is_available() else "cpu"},  # 0: not tried on a GPU
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as exc:
        if isinstance(exc, torch.OutOfMemoryError):
            raise
        raise _unusable(directory, exc) from exc
    # transformers only warns, and trains on random numbers.
    if loading["missing_keys"]:
        raise _unusable(directory, f"weights are missing: {sorted(loading['missing_keys'])[:5]}")
    keep_trainable_on_cpu(model)
    return model


def keep_trainable_on_cpu(model: torch.nn.Module) -> None:
    """Stop 4-bit layers from repacking their weights for inference.

    On CPUs with AVX512-BF16 the first forward pass in eval mode repacks them for a kernel without
    autograd, after which no gradient flows through them any more.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _require(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise _unusable(directory, "there is no config.json")


def _unusable(directory: Path, reason: object) -> CorruptState:
    return CorruptState(
        "unusable_base_model",
        f"{directory} should hold a base model that can be loaded, but: {reason}",
        next_step="import the base model again",
    )
