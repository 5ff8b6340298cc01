"""`appliance chat`: ask a model from the terminal."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any

import typer

from appliance.cli import output
from appliance.cli.client import Client, connect
from appliance.cli.options import CONNECTION, JsonPath, with_settings
from appliance.errors import ApplianceError
from appliance.settings import Settings


@with_settings(CONNECTION)
def chat(
    settings: Settings,
    model: str,
    message: Annotated[
        str | None, typer.Argument(help="One question; without it, a dialogue.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    json_path: JsonPath = None,
) -> None:
    """Ask a model; answers stream."""
    history: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    options = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
    with connect(settings) as client:
        if message is not None:
            answer = _ask(client, history, message, options, quiet=json_path == "-")
            if json_path is not None:
                output.show({"model": model, "answer": answer}, json_path, "")
            return
        typer.echo("An empty line ends the dialogue.", err=True)
        with contextlib.suppress(typer.Abort):
            while question := typer.prompt("you", default="", show_default=False):
                _ask(client, history, question, options, quiet=False)


def _ask(
    client: Client,
    history: list[dict[str, str]],
    question: str,
    options: dict[str, Any],
    *,
    quiet: bool,
) -> str:
    history.append({"role": "user", "content": question})
    pieces = []
    body = {**options, "messages": history, "stream": True}
    for line in client.stream("/v1/chat/completions", body):
        text = _text_of(line)
        pieces.append(text)
        if not quiet:
            typer.echo(text, nl=False)
    if not quiet:
        typer.echo()
    history.append({"role": "assistant", "content": "".join(pieces)})
    return history[-1]["content"]


def _text_of(line: str) -> str:
    data = line.removeprefix("data: ")
    if not data or data == "[DONE]":
        return ""
    event = json.loads(data)
    if "error" in event:
        raise ApplianceError(event["error"]["code"], event["error"]["message"])
    return "".join(choice["delta"].get("content", "") for choice in event["choices"])
