"""Puts a LoRA adapter on a base model, fresh or continued, and writes it as PEFT reads it.

Knows nothing of training.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

from appliance.errors import ChildFailed, CorruptState
from appliance.records import Hyperparameters

WEIGHTS = "adapter_model.safetensors"


def attach_fresh(model: Any, hyperparameters: Hyperparameters) -> PeftModel:
    """A new adapter on every linear layer but the output head; its numbers come from torch's RNG.

    Raises ChildFailed (`experts_not_supported`) for a model with a mixture of experts.
    """
    _refuse_experts(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=hyperparameters.r,
        lora_alpha=hyperparameters.lora_alpha,
        lora_dropout=hyperparameters.lora_dropout,
    )
    return get_peft_model(model, config)


def _refuse_experts(model: Any) -> None:
    """Where experts lie in one tensor, PEFT adapts them by itself, asked or not; no release merges that."""
    experts = (name for name, _ in model.named_parameters() if ".experts." in name)
    if (first := next(experts, None)) is not None:
        raise ChildFailed(
            "experts_not_supported",
            f"the base model should have no mixture of experts; it has {first}, and an adapter on that "
            "could not be released",
            next_step="choose a base model without experts",
        )


def attach_existing(model: Any, directory: Path, hyperparameters: Hyperparameters) -> PeftModel:
    """The adapter in `directory`, to be trained further: rank, alpha and targets are its own."""
    try:
        config = PeftConfig.from_pretrained(str(directory))
        config.lora_dropout = hyperparameters.lora_dropout
        with warnings.catch_warnings():
            # A key that is missing, or does not fit, would leave a part of the adapter untrained.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(
                model, str(directory), config=config, is_trainable=True, local_files_only=True
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserWarning) as exc:
        raise _unusable(directory, exc) from exc
    except safetensors.SafetensorError as exc:
        raise _unusable(directory, exc) from exc


def write(model: PeftModel, directory: Path) -> None:
    """Write weights and configuration; not durable by itself.

    PEFT's own `save_pretrained` would also write a model card that names this machine's paths.
    """
    # "auto" would look for the base model's configuration on a hub.
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Straight from where they are: `save` would hold them twice more.
    safetensors.torch.save_file(contiguous, directory / WEIGHTS, {"format": "pt"})
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = None
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        # The order of a set differs from process to process, and with it the bytes of the file.
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(directory))


def load_weights(model: PeftModel, directory: Path) -> None:
    """Put written weights into the attached adapter of the same shape."""
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    if tensors.keys() != expected:
        raise _unusable(directory, "its tensors are not those of this adapter")
    set_peft_model_state_dict(model, tensors)


def _unusable(directory: Path, reason: object) -> CorruptState:
    return CorruptState(
        "unusable_adapter",
        f"{directory} should hold a LoRA adapter for this base model, but: {reason}",
        next_step="start from the base model, or from another fine-tuned model",
    )
