"""What the daemon and its children tell each other: how they start, what is asked for, what came out, how
far they are. No behaviour, no I/O.

`appliance.batch` says which file holds what. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from appliance.records import (
    GgufFile,
    Hyperparameters,
    ImportanceMatrix,
    Quantization,
    ReleaseFile,
    SourceFile,
    Technique,
)

# Beside a base's GGUF: what llama.cpp's converter makes of its configuration.
CONFIGURATION = "converter-configuration.json"


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """Argument lists that start the children; their own arguments are appended."""

    base_import: tuple[str, ...]
    training: tuple[str, ...]
    release: tuple[str, ...]
    merge: tuple[str, ...]
    engine: tuple[str, ...]


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`spec.json` of the training child. Directories and files are absolute paths.

    `base_directory` is a Hugging Face directory (safetensors, tokenizer, chat template),
    `initial_adapter_directory` a PEFT adapter to go on from, or None; `max_steps` cuts the run short.
    """

    base_directory: str
    initial_adapter_directory: str | None
    train_file: str
    validation_file: str | None
    validation_fraction: float
    technique: Technique
    hyperparameters: Hyperparameters
    seed: int
    checkpoint_seconds: float
    threads: int
    importance_matrix: bool = False
    max_steps: int | None = None


class TrainingResult(msgspec.Struct, frozen=True, kw_only=True):
    """`result.json` of the training child, `adapter/` beside it; `planned_*` are those of all epochs.

    `versions` are those of the software that took part, by the names of the distributions.
    """

    steps: int
    epochs: float
    trained_tokens: int
    train_loss: float
    validation_loss: float | None
    seconds: float
    end_of_turn_token_id: int
    planned_tokens: int = 0
    planned_validations: int = 0
    versions: dict[str, str] = {}


class TextPiece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a rendered conversation; control tokens that a plain one names are text."""

    text: str
    is_plain: bool


class TokenizedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the data as it was trained on: rendered, and the token ids that this gave."""

    line: int
    pieces: tuple[TextPiece, ...]
    token_ids: tuple[int, ...]


# The most likely tokens at one place, with the natural logarithms of their probabilities, in falling order.
Likely = tuple[tuple[int, float], ...]


class TrainedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The trained model's own greedy answer to a prompt; both are token ids.

    `stopped` says whether the answer's last token ends the turn. `likely` is told of the places of some of
    the prompt's last tokens and of all of the answer's.
    """

    line: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    stopped: bool
    likely: tuple[Likely, ...]


class TrainedBehaviour(msgspec.Struct, frozen=True, kw_only=True):
    """`behaviour.json` of the training child: what a release has to do likewise.

    `base_in_4_bits` says whether the model that did it had its base in NF4. `moved` tells of each weight, by
    the base's name of it, how far training moved it: the Frobenius norm of what it adds.
    """

    base_in_4_bits: bool
    moved: dict[str, float]
    rows: tuple[TokenizedRow, ...]
    answers: tuple[TrainedAnswer, ...]


class Trained(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a fine-tuned model is made of beside its base: an adapter, and a GGUF of that base, in any type.

    `end_of_turn_token_id` is what training ended each answer with; `behaviour_file` holds a
    `TrainedBehaviour`, `importance_file` what matters to each weight, where that is to be used.
    """

    adapter_directory: str
    base_file: str
    behaviour_file: str
    end_of_turn_token_id: int
    importance_file: str | None = None
    importance_matrix: ImportanceMatrix = "off"


class ReleaseSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`spec.json` of the release child. With nothing trained, the base itself is released.

    `converter_directory` is the llama.cpp tree that holds `convert_hf_to_gguf.py`.
    """

    model_name: str
    base_directory: str
    trained: Trained | None
    converter_directory: str
    quantizations: tuple[Quantization, ...]
    threads: int


class ReleaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """`result.json` of the release child."""

    files: tuple[ReleaseFile, ...]
    seconds: float
    adapter_file: GgufFile | None = None
    versions: dict[str, str] = {}


class MergeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`spec.json` of the child that merges an adapter into its base's own files; `destination` is the new
    directory for them, of which only the parent says when it is complete."""

    base_directory: str
    adapter_directory: str
    destination: str
    threads: int


class MergeResult(msgspec.Struct, frozen=True, kw_only=True):
    """`result.json` of that child."""

    merged_weights: int


class ImportSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`spec.json` of the import child. `source` is a Hugging Face directory or one GGUF file.

    `chat_template` is one in Jinja for a model that brings none.
    """

    name: str
    source: str
    licence: str
    origin: str
    chat_template: str | None = None


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """`result.json` of the import child; the safetensors directory lies beside it in `hf/`."""

    architecture: str
    parameters: int
    context_length: int
    licence: str
    sha256: str
    sources: tuple[SourceFile, ...]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a batch child's `metrics.jsonl`.

    `key` is unique for what is reported ("step:40"), so that a resumed child may report it again.
    `data` marks the line as metrics; `eta_seconds` is the time left until the child ends.
    """

    key: str
    message: str
    level: Literal["info", "warn", "error"] = "info"
    data: dict[str, Any] | None = None
    eta_seconds: float | None = None
