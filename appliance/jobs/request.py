"""What a caller may ask of a fine-tuning job: OpenAI's body, and our one extra object, `appliance`.

Limits are OpenAI's where it has them (openai-openapi, CreateFineTuningJobRequest).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.hardware.fit.planner import MOST_ACCUMULATION_STEPS
from appliance.records import ImportanceMatrix, LeasePolicy, Quantization

Auto = Literal["auto"]
# A dollar alone would let a line feed pass at the end.
SUFFIX = r"^[A-Za-z0-9._-]{1,64}$(?!\n)"


class SupervisedHyperparameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`method.supervised.hyperparameters`."""

    batch_size: Auto | Annotated[int, Meta(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Meta(gt=0, le=1000)] = "auto"
    n_epochs: Auto | Annotated[int, Meta(ge=1, le=50)] = "auto"


class Supervised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`method.supervised`."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`method`; DPO and reinforcement are refused by name until they exist."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Supervised()


class Advanced(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`appliance.advanced`: TRL's and PEFT's settings under their own names; they win over the rest."""

    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    num_train_epochs: Annotated[int, Meta(ge=1, le=1000)] | None = None
    per_device_train_batch_size: Annotated[int, Meta(ge=1, le=256)] | None = None
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, le=MOST_ACCUMULATION_STEPS)] | None = (
        None
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant"] | None = None
    warmup_ratio: Annotated[float, Meta(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Meta(ge=0, le=10)] | None = None
    max_grad_norm: Annotated[float, Meta(ge=0, le=1000)] | None = None
    max_length: Annotated[int, Meta(ge=8, le=1 << 20)] | None = None
    r: Annotated[int, Meta(ge=1, le=1024)] | None = None
    lora_alpha: Annotated[int, Meta(ge=1, le=4096)] | None = None
    lora_dropout: Annotated[float, Meta(ge=0, lt=1)] | None = None


class ApplianceOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`appliance`: everything that OpenAI's API has no place for.

    `policy` says who gives way where memory is not enough for both: with `serve_first` the job waits, with
    `train_first` models are unloaded, and loaded again after it. The training child runs at the lowest CPU
    priority either way. `importance_matrix` lets the quantizer spare what matters to the job's own rows:
    "auto" keeps it where the release is nearer to what was trained with it than without.
    """

    technique: Literal["qlora", "lora"] | None = None
    quantizations: Annotated[tuple[Quantization, ...], Meta(min_length=1)] | None = None
    policy: LeasePolicy | None = None
    importance_matrix: ImportanceMatrix = "off"
    validation_fraction: Annotated[float, Meta(ge=0, le=0.5)] | None = None
    advanced: Advanced = Advanced()

    def __post_init__(self) -> None:
        if self.quantizations and len(set(self.quantizations)) < len(self.quantizations):
            raise ValueError("quantizations should differ from each other")


class FineTuningRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/fine_tuning/jobs`. `hyperparameters` is OpenAI's older place for the same."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    training_file: Annotated[str, Meta(min_length=1, max_length=128)]
    validation_file: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    suffix: Annotated[str, Meta(pattern=SUFFIX)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2147483647)] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Meta(max_length=64)],
                Annotated[str, Meta(max_length=512)],
            ],
            Meta(max_length=16),
        ]
        | None
    ) = None
    integrations: Annotated[list[Any], Meta(max_length=0)] | None = None
    method: Method = Method()
    hyperparameters: SupervisedHyperparameters | None = None
    appliance: ApplianceOptions = ApplianceOptions()

    def __post_init__(self) -> None:
        if self.hyperparameters is not None:
            if self.method.supervised.hyperparameters != SupervisedHyperparameters():
                raise ValueError("give hyperparameters either at the top or in method, not in both")
            method = Method(supervised=Supervised(hyperparameters=self.hyperparameters))
            msgspec.structs.force_setattr(self, "method", method)
