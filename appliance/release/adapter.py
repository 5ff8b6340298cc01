"""Read a LoRA adapter as PEFT writes it: pairs of small matrices, and how much each of them counts.

Knows no base model and no GGUF. What it does not know how to merge it refuses, never passes over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from appliance.errors import ChildFailed

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
# Ways of training that change weights by more than B·A (peft/tuners/lora/config.py, PEFT 0.21).
_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)


class LoraPair(NamedTuple):
    """What training adds to a weight [outputs, inputs]: `scaling` · `b` [outputs, r] · `a` [r, inputs]."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """r of this pair."""
        return self.a.shape[0]

    @property
    def norm(self) -> float:
        """How far it moves its weight: the Frobenius norm of what it adds, from two matrices of r·r."""
        a, b = self.a.double(), self.b.double()
        squares = float(((b.T @ b) * (a @ a.T)).sum())
        return abs(self.scaling) * math.sqrt(max(0.0, squares))

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight in float32; operations and their order are PEFT's (Linear.get_delta_weight)."""
        delta = self.b.float() @ self.a.float()
        delta *= self.scaling
        return delta.add_(weight)


def read(directory: Path) -> dict[str, LoraPair]:
    """The pairs of `directory` by the base's names of the weights that they change.

    Raises ChildFailed (`release_check_failed`) unless they are plain LoRA and complete.
    """
    config = json.loads((directory / CONFIG).read_bytes())
    _refuse_unknown_kinds(config)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            match = _KEY.fullmatch(key)
            if match is None:
                raise _failed(f"its tensors should be LoRA pairs of linear layers; found {key!r}")
            halves.setdefault(match["module"], {})[match["half"]] = file.get_tensor(key)
    if not halves:
        raise _failed("it should hold LoRA pairs; it holds none")
    return {
        f"{module}.weight": _pair(config, module, found) for module, found in sorted(halves.items())
    }


def _pair(config: Mapping[str, Any], module: str, halves: Mapping[str, torch.Tensor]) -> LoraPair:
    if halves.keys() != {"A", "B"}:
        raise _failed(f"each pair should have two halves; {module} has {sorted(halves)} alone")
    a, b = halves["A"], halves["B"]
    r = _of_pattern(config, "rank_pattern", module, config["r"])
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != r or b.shape[1] != r:
        raise _failed(
            f"{module} should have rank {r}; its halves are {[*a.shape]} and {[*b.shape]}"
        )
    alpha = _of_pattern(config, "alpha_pattern", module, config["lora_alpha"])
    # rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
    return LoraPair(a, b, alpha / (math.sqrt(r) if config.get("use_rslora") else r))


def _of_pattern(config: Mapping[str, Any], name: str, module: str, default: float) -> float:
    """As PEFT looks it up (get_pattern_key): the first pattern that is the end of the module's name."""
    patterns = config.get(name) or {}
    found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def _refuse_unknown_kinds(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise _failed(
            f"it should be LoRA without bias; it is {config.get('peft_type')} "
            f"with bias {config.get('bias')!r}"
        )
    if used := [name for name in _REFUSED if config.get(name)]:
        raise _failed(f"it should be plain LoRA; it uses {', '.join(used)}")


def _failed(reason: str) -> ChildFailed:
    return ChildFailed(
        "release_check_failed",
        f"the adapter cannot be merged: {reason}",
        next_step="check that the adapter was trained here, on this base model",
    )
