"""The demo's question: is the fine-tuned model better than prompting, and than looking the answer up?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from appliance.cli import output
from appliance.cli.client import Client
from appliance.cli.nearest import NearestNeighbour
from appliance.graders import json_exact_match

# Twice what the longest right answer has.
MAX_TOKENS = 40

Messages = list[dict[str, str]]


class Example(msgspec.Struct, kw_only=True):
    """The example dataset: rows of messages, and the best prompt for a model that was not tuned."""

    train: list[Messages]
    heldout: list[Messages]
    prompted: Messages

    @property
    def heldout_questions(self) -> list[str]:
        """What the user says in each held-out row."""
        return [row[-2]["content"] for row in self.heldout]

    @property
    def system_messages(self) -> Messages:
        """What stands before the user's turn in every row."""
        return self.heldout[0][:-2]


class Scores(msgspec.Struct, kw_only=True):
    """Every method's answer to every held-out row."""

    expected: list[str]
    answers: dict[str, list[str]]

    def share(self, method: str) -> float:
        """Share of the rows that the method answers exactly."""
        pairs = zip(self.answers[method], self.expected, strict=True)
        return sum(json_exact_match(answer, wanted) for answer, wanted in pairs) / len(
            self.expected
        )


def read_example(directory: Path) -> Example:
    """Read `train.jsonl`, `heldout.jsonl` and `prompted.json`."""
    prompt = json.loads((directory / "prompted.json").read_text(encoding="utf-8"))
    prompted = [{"role": "system", "content": prompt["system"]}]
    for shot in prompt["examples"]:
        prompted.append({"role": "user", "content": shot["user"]})
        prompted.append({"role": "assistant", "content": shot["assistant"]})
    return Example(
        train=_rows(directory / "train.jsonl"),
        heldout=_rows(directory / "heldout.jsonl"),
        prompted=prompted,
    )


def evaluate(client: Client, data: Example, *, base: str, tuned: str) -> Scores:
    """Ask everyone every held-out question, greedily."""
    nearest = NearestNeighbour([(row[-2]["content"], row[-1]["content"]) for row in data.train])
    askers: dict[str, Any] = {
        "base": lambda row: _ask(client, base, row[:-1]),
        "prompted": lambda row: _ask(client, base, [*data.prompted, row[-2]]),
        "nearest": lambda row: nearest.answer(row[-2]["content"]),
        "tuned": lambda row: _ask(client, tuned, row[:-1]),
    }
    columns = (
        TextColumn("    {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    answers: dict[str, list[str]] = {}
    with Progress(*columns, console=output.error_console) as progress:
        for name, ask in askers.items():
            rows = progress.track(data.heldout, description=f"{name:10}")
            answers[name] = [ask(row) for row in rows]
    return Scores(expected=[row[-1]["content"] for row in data.heldout], answers=answers)


def _ask(client: Client, model: str, messages: Messages) -> str:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    answer = client.post("/v1/chat/completions", body)
    return str(answer["choices"][0]["message"]["content"])


def _rows(path: Path) -> list[Messages]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["messages"] for line in file]
