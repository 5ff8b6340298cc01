"""What a release of a base and one of a fine-tuned model have in common: steps that are told, room that is
looked for, a file that is checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from appliance import batch, durable
from appliance.child_records import ReleaseSpec
from appliance.records import ImportanceUse, Parity, Quantization
from appliance.release import checks


class Made(NamedTuple):
    """A finished file, not in its final place yet."""

    path: Path
    parity: Parity | None = None
    importance: ImportanceUse | None = None


class Steps:
    """Reports each step as it begins, and which of how many it is."""

    def __init__(self, total: int, reporter: batch.Reporter) -> None:
        self._reporter = reporter
        self._begun = 0
        self._total = total

    def begin(self, key: str, message: str) -> None:
        """Say so, before anything of it is done."""
        self._begun += 1
        data = {"step": self._begun, "total_steps": self._total}
        self._reporter.report(key, message, data=data)


def load_tokenizer(spec: ReleaseSpec) -> Any:
    """The base's own."""
    # Late, since it takes as long as a small model's merge.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(spec.base_directory, local_files_only=True)


def check(
    spec: ReleaseSpec, quantization: Quantization, path: Path, tokenizer: Any, steps: Steps
) -> None:
    """Hold a finished file against the base's tokenizer and template; raises ChildFailed."""
    steps.begin(f"check:{quantization}", f"checking {path.name} against the base model")
    checks.check(
        path,
        tokenizer,
        end_of_turn_token_id=spec.trained.end_of_turn_token_id if spec.trained else None,
        threads=spec.threads,
    )


def check_space(work: Path, needed: int) -> None:
    """Raise OutOfDisk unless so many bytes are free."""
    available = shutil.disk_usage(work).free
    if needed > available:
        raise durable.out_of_disk(
            f"a release needs {needed / 2**30:.1f} GiB of free space; "
            f"there are {available / 2**30:.1f} GiB",
        )


def file_name(quantization: Quantization) -> str:
    """Of the model in this type."""
    return f"model-{quantization}.gguf"
