"""The model card, in Markdown with the front matter that model hubs read.

Fields: https://huggingface.co/docs/hub/model-cards. Tells what is known, and what nobody has looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from appliance.exports.provenance import Provenance
from appliance.records import ReleaseFile


def markdown(known: Provenance) -> str:
    """The whole card."""
    return "\n".join(_lines(known)) + "\n"


def _lines(known: Provenance) -> Iterator[str]:
    release, base, job = known.release, known.base, known.job
    yield from ("---", f"base_model: {_quoted(base.name)}", f"license: {_quoted(base.licence)}")
    yield from ("pipeline_tag: text-generation", "tags: [fine-tuned, lora, gguf]", "---", "")
    yield from (f"# {_plain(release.name)}", "")
    yield f"Fine-tuned from {_plain(base.name)} on the {_day(release.created_at)} by job {job.id}."
    yield from ("", "## Base model", "")
    yield from _table(
        ("name", base.name),
        ("source", base.source),
        ("licence", base.licence),
        ("architecture", base.architecture),
        ("parameters", f"{base.parameters:,}"),
        ("context length", f"{base.context_length:,} tokens"),
        ("SHA-256", base.sha256),
    )
    yield from (
        "",
        "The licence is the base model's; what may be done with the data is not known here.",
    )
    yield from (
        "",
        "## Data",
        "",
        "| file | use | rows | bytes | SHA-256 |",
        "|---|---|---|---|---|",
    )
    for each in known.data:
        yield f"| {each.id} | {each.use} | {each.rows:,} | {each.bytes:,} | {each.sha256} |"
    yield from ("", "## Training", "")
    yield from _table(
        ("technique", job.plan.technique),
        ("seed", str(job.seed)),
        *((name, str(value)) for name, value in _hyperparameters(known)),
        ("trained tokens", f"{known.training.trained_tokens:,}"),
        ("loss in training", f"{known.training.train_loss:.4f}"),
        ("loss in validation", _loss(known.training.validation_loss)),
        ("seconds", f"{known.training.seconds:.0f}"),
    )
    yield from ("", "## Files", "")
    yield from _files(release.files)
    yield from ("", "## Software", "")
    yield from _table(*sorted(known.versions.items()))
    yield from ("", "## Not looked at", "")
    yield "Quality on other tasks than the data's own; bias; safety; personal data among the rows."


def _files(files: Sequence[ReleaseFile]) -> Iterator[str]:
    yield "Each was held against the model as it was trained; divergence is the mean, in nats a token."
    yield from (
        "",
        "| type | bytes | in answers | in prompts | from base and adapter | equal answers |",
    )
    yield "|---|---|---|---|---|---|"
    for file in files:
        numbers = "not compared | | |"
        if (found := file.parity) is not None:
            numbers = (
                f"{found.in_answers.mean_kl:.4f} | {found.in_prompts.mean_kl:.4f} | "
                f"{found.unmerged.mean_kl:.4f} | {found.equal_answers} of {found.answers}"
            )
        yield f"| {file.quantization} | {file.bytes:,} | {numbers} |"


def _hyperparameters(known: Provenance) -> Iterable[tuple[str, object]]:
    return msgspec.to_builtins(known.job.plan.hyperparameters).items()  # type: ignore[no-any-return]


def _table(*rows: tuple[str, str]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for name, value in rows:
        yield f"| {_plain(name)} | {_plain(value)} |"


def _loss(value: float | None) -> str:
    return "no rows were held out" if value is None else f"{value:.4f}"


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _quoted(text: str) -> str:
    """As a YAML string: JSON's are among them."""
    return msgspec.json.encode(text).decode()


def _plain(text: str) -> str:
    """Text from outside, so that it neither ends a cell nor is markup."""
    for special in "\\`*_[]<>|#":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
