"""The model card, in Markdown with the front matter that model hubs read.

Fields: https://huggingface.co/docs/hub/model-cards. Tells what is known, and what nobody has looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from appliance.exports.provenance import Provenance, Written
from appliance.records import ImportanceUse, Likeness

_COMPARED = (
    "file",
    "in answers",
    "in prompts",
    "from base and adapter",
    "adapter in the weights",
    "equal answers",
    "importance matrix",
)


def markdown(known: Provenance, files: Sequence[Written]) -> str:
    """The whole card of an export that holds `files`."""
    return "\n".join(_lines(known, files)) + "\n"


def _lines(known: Provenance, files: Sequence[Written]) -> Iterator[str]:
    yield from _head(known)
    yield from ("", "## Base model", "")
    yield from _base(known)
    yield from ("", "## Data", "")
    yield from _data(known)
    yield from ("", "## Training", "")
    yield from _training(known)
    yield from ("", "## Files", "")
    yield from _files(files)
    yield from ("", "## Software", "")
    yield from _table(*sorted(known.versions.items()))
    yield from ("", "## Not looked at", "")
    yield "Quality on other tasks than the data's own; bias; safety; personal data among the rows."


def _head(known: Provenance) -> Iterator[str]:
    release, base = known.release, known.base
    yield from ("---", f"base_model: {_quoted(base.name)}", f"license: {_quoted(base.licence)}")
    yield from ("pipeline_tag: text-generation", "tags: [fine-tuned, lora]", "---", "")
    yield from (f"# {_plain(release.name)}", "")
    day = time.strftime("%Y-%m-%d", time.gmtime(release.created_at))
    yield f"Fine-tuned from {_plain(base.name)} on the {day} by job {known.job.id}."
    for earlier in known.earlier_jobs:
        yield f"It goes on from {_plain(earlier.fine_tuned_model or '')}, made by job {earlier.id}."


def _base(known: Provenance) -> Iterator[str]:
    base = known.base
    yield from _table(
        ("name", base.name),
        ("source", base.source),
        ("licence", base.licence),
        ("architecture", base.architecture),
        ("parameters", f"{base.parameters:,}"),
        ("context length", f"{base.context_length:,} tokens"),
        ("SHA-256", base.sha256),
    )
    yield ""
    yield "The licence is the base model's; what may be done with the data is not known here."


def _data(known: Provenance) -> Iterator[str]:
    yield "| file | job | use | rows | bytes | SHA-256 |"
    yield "|---|---|---|---|---|---|"
    for each in known.data:
        facts = "no longer here | | |"
        if each.sha256 is not None:
            facts = f"{each.rows:,} | {each.bytes:,} | {each.sha256} |"
        yield f"| {each.id} | {each.job_id} | {each.use} | {facts}"


def _training(known: Provenance) -> Iterator[str]:
    training = known.training
    held_out = training.validation_loss
    yield from _table(
        ("technique", known.job.plan.technique),
        ("seed", str(known.job.seed)),
        *((name, str(value)) for name, value in _hyperparameters(known)),
        ("trained tokens", f"{training.trained_tokens:,}"),
        ("loss in training", f"{training.train_loss:.4f}"),
        (
            "loss in validation",
            "no rows were held out" if held_out is None else f"{held_out:.4f}",
        ),
        ("seconds", f"{training.seconds:.0f}"),
    )


def _hyperparameters(known: Provenance) -> Iterable[tuple[str, object]]:
    return msgspec.to_builtins(known.job.plan.hyperparameters).items()  # type: ignore[no-any-return]


def _files(files: Sequence[Written]) -> Iterator[str]:
    yield from ("| file | bytes | SHA-256 |", "|---|---|---|")
    for each in files:
        yield f"| {_plain(each.name)} | {each.bytes:,} | {each.sha256} |"
    yield ""
    compared = [
        (each.name, each.released, each.released.parity)
        for each in files
        if each.released and each.released.parity
    ]
    if not compared:
        yield "None of these files was compared with the model as it was trained."
        return
    yield "Compared with the model as it was trained; divergence is the mean, in nats a token."
    yield from ("", f"| {' | '.join(_COMPARED)} |", "|---" * len(_COMPARED) + "|")
    for name, released, found in compared:
        numbers = [*map(_divergence, (found.in_answers, found.in_prompts, found.unmerged))]
        numbers.append("not told" if found.strength is None else f"{found.strength.slope:.2f}")
        numbers.append(f"{found.equal_answers} of {found.answers}")
        numbers.append(_importance(released.importance))
        yield f"| {_plain(name)} | {' | '.join(numbers)} |"


def _importance(use: ImportanceUse | None) -> str:
    if use is None:
        return "none"
    compared = f"{use.kl_with:.4f} with it, {use.kl_without:.4f} without"
    return f"of {use.tokens} tokens ({compared})" if use.used else f"not used ({compared})"


def _divergence(found: Likeness) -> str:
    return f"{found.mean_kl:.4f}" if found.positions else "not compared"


def _table(*rows: tuple[str, str]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for name, value in rows:
        yield f"| {_plain(name)} | {_plain(value)} |"


def _quoted(text: str) -> str:
    """As a YAML string: JSON's are among them."""
    return msgspec.json.encode(text).decode()


def _plain(text: str) -> str:
    """Text from outside, so that it neither ends a cell nor is markup."""
    for special in "\\`*_[]<>|#":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
