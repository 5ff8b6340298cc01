"""The frozen structs that cross package borders; no behaviour, no I/O.

Times are Unix seconds, sizes are bytes, and unit suffixes say so. The wire format of the HTTP API is not
here: `appliance.api` translates.
"""

from __future__ import annotations

import enum
from typing import Any, Literal

import msgspec


class Quantization(enum.StrEnum):
    """llama.cpp's own names of the file types that a release can be written in."""

    Q2_K = "Q2_K"
    Q4_K_M = "Q4_K_M"
    Q5_K_M = "Q5_K_M"
    Q6_K = "Q6_K"
    Q8_0 = "Q8_0"
    F16 = "F16"
    BF16 = "BF16"


# The types that an importance matrix makes better; the others lose next to nothing.
IMPORTANCE_TYPES = frozenset(
    {Quantization.Q2_K, Quantization.Q4_K_M, Quantization.Q5_K_M, Quantization.Q6_K}
)


class ExportForm(enum.StrEnum):
    """What of a fine-tuned model leaves the box: GGUF files with a Modelfile; the adapter, as PEFT and as
    llama.cpp read it; safetensors with the adapter merged."""

    GGUF = "gguf"
    ADAPTER = "adapter"
    MERGED = "merged"


# LoRA on a base held in 4 bits (NF4), or in 16.
Technique = Literal["qlora", "lora"]
# Who gives way where the device's memory is not enough for both serving and training.
LeasePolicy = Literal["serve_first", "train_first"]
ImportanceMatrix = Literal["off", "on", "auto"]


class JobStatus(enum.StrEnum):
    """OpenAI's statuses of a fine-tuning job."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


# --- what users own ---


class CheckedRows(msgspec.Struct, frozen=True, kw_only=True):
    """What the check of a training file found."""

    rows: int
    longest_row_bytes: int


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file; its bytes lie in the blob store under `sha256`.

    `longest_row_bytes` is None for what holds no rows, and for files of the first schema.
    """

    id: str
    created_at: int
    filename: str
    purpose: str
    bytes: int
    sha256: str
    rows: int | None = None
    longest_row_bytes: int | None = None


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A fine-tuning job. `plan` is everything decided at creation; the rest is its course."""

    id: str
    created_at: int
    model: str
    training_file: str
    validation_file: str | None
    seed: int
    suffix: str | None
    metadata: dict[str, str]
    method: dict[str, Any]
    appliance: dict[str, Any]
    plan: Plan
    status: JobStatus
    finished_at: int | None = None
    estimated_finish: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    error: JobError | None = None


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a job's history. `key` makes a repeated report of the same thing a no-op."""

    id: str
    job_id: str
    created_at: int
    key: str
    level: Literal["info", "warn", "error"]
    message: str
    data: dict[str, Any] | None = None


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a base model's Hugging Face directory; its bytes are also a blob, named by `sha256`."""

    name: str
    bytes: int
    sha256: str


class BaseModel(msgspec.Struct, frozen=True, kw_only=True):
    """An imported base model, ready to be trained on and to be served.

    `sha256` is of all `sources`, which is None for a model of an earlier schema.
    """

    name: str
    created_at: int
    architecture: str
    parameters: int
    context_length: int
    licence: str
    source: str
    sha256: str
    directory: str
    files: tuple[ReleaseFile, ...]
    sources: tuple[SourceFile, ...] | None = None


class GgufFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file for llama.cpp."""

    path: str
    bytes: int
    sha256: str


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """How alike two models' next tokens are over `positions` places: the mean Kullback-Leibler divergence in
    nats, and at what share of the places at which the first is decided the same token is the most likely
    one of both (1 if it seldom is)."""

    positions: int
    mean_kl: float
    top1_agreement: float


class Strength(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what the adapter adds to the base's weights is in a release, and the standard error."""

    slope: float
    error: float


class ImportanceUse(msgspec.Struct, frozen=True, kw_only=True):
    """What an importance matrix of so many tokens did for a release: the mean divergence from the model as it
    was trained with it and without, in nats, and whether it was used."""

    used: bool
    tokens: int
    kl_with: float
    kl_without: float


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How near a release is to the model as it was trained: in that one's greedy answers, and in the prompts
    before them.

    `unmerged` is how near it is, in prompts, to the base's own file with the adapter attached (over no
    positions in releases made before that was looked at); `strength` is told from its weights (None where
    that was not looked at, or cannot be).

    Of the release's own answers, `equal_answers` are those of the trained model, token for token; `stopped`
    end by themselves, or would at the trained model's end.
    """

    in_answers: Likeness
    in_prompts: Likeness
    answers: int
    equal_answers: int
    stopped: int
    stopped_when_trained: int
    unmerged: Likeness = Likeness(positions=0, mean_kl=0.0, top1_agreement=1.0)
    strength: Strength | None = None


class ReleaseFile(GgufFile, frozen=True, kw_only=True):
    """One servable model; `parity` is None for a base, and for releases made before there was a gate."""

    quantization: Quantization
    parity: Parity | None = None
    importance: ImportanceUse | None = None


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A fine-tuned model that can be served, and where it came from.

    `adapter_file` is its adapter alone, to attach to the base; releases of the first schemas have none.
    """

    name: str
    created_at: int
    job_id: str
    base_model: str
    adapter_directory: str
    files: tuple[ReleaseFile, ...]
    adapter_file: GgufFile | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as stored: only the SHA-256 of its secret is kept."""

    id: str
    name: str
    created_at: int
    sha256: str
    admin: bool


# --- how a model is trained ---


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training settings under TRL's and PEFT's own names, all resolved (nothing is "auto" here)."""

    num_train_epochs: int
    learning_rate: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    lr_scheduler_type: Literal["linear", "cosine", "constant"]
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_length: int
    r: int
    lora_alpha: int
    lora_dropout: float


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job will do, decided once when it is created.

    `*_bytes` are the predicted peaks of the device's memory; None where they cannot be told.
    """

    base_model: str
    initial_adapter: str | None
    technique: Technique
    hyperparameters: Hyperparameters
    quantizations: tuple[Quantization, ...]
    validation_fraction: float
    policy: LeasePolicy = "serve_first"
    importance_matrix: ImportanceMatrix = "off"
    training_bytes: int | None = None
    release_bytes: int | None = None
