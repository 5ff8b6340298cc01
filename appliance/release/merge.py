"""Merge a LoRA adapter into its base model's weights, in float32 on the CPU.

The base is the unquantized one: merging into quantized weights would round the adapter away.
Knows nothing of GGUF.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from appliance.errors import ChildFailed

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def merge(base: Path, adapter: Path, destination: Path) -> int:
    """Write base + adapter into the empty directory `destination`; returns the number of merged pairs.

    Everything but the weights is copied from the base byte for byte, tokenizer and config included.
    Raises ChildFailed (`release_check_failed`) unless exactly the adapter's pairs were merged.
    """
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    adapted = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    adapted.merge_adapter(safe_merge=True)
    merged = _merged_modules(adapted)
    expected = _modules_in_adapter(adapter)
    if merged != expected or not merged:
        raise ChildFailed(
            "release_check_failed",
            f"the adapter's {len(expected)} LoRA pairs should be merged; {len(merged)} were, and "
            f"{len(merged ^ expected)} differ, such as {sorted(merged ^ expected)[:3]}",
            next_step="check that the adapter was trained on this base model",
        )
    adapted.unload().save_pretrained(destination)
    copy_all_but_weights(base, destination)
    return len(merged)


def copy_all_but_weights(base: Path, destination: Path) -> None:
    """Copy config, tokenizer, chat template and licence as they are."""
    for path in base.iterdir():
        if not path.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(path, destination / path.name)


def _merged_modules(adapted: Any) -> set[str]:
    return {
        name
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer) and module.merged
    }


def _modules_in_adapter(adapter: Path) -> set[str]:
    """The modules for which the adapter's file holds both halves of a pair."""
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        halves = [re.fullmatch(r"(.+)\.lora_([AB])\.weight", key) for key in file.keys()]  # noqa: SIM118
    named = {(match[1], match[2]) for match in halves if match}
    return {module for module, half in named if (module, "A") in named and (module, "B") in named}
