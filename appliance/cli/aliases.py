"""`appliance aliases`: names that apps call, and which model each means."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from appliance.cli import output
from appliance.cli.client import connect
from appliance.cli.options import CONNECTION, JsonPath, with_settings
from appliance.settings import Settings

app = typer.Typer(help="Names that apps call and that outlive a retraining.", no_args_is_help=True)

ALIASES = "/api/v1/aliases"


@app.command("list")
@with_settings(CONNECTION)
def list_aliases(settings: Settings, json_path: JsonPath = None) -> None:
    """List aliases, and what they mean since when."""
    with connect(settings) as client:
        aliases = client.get(ALIASES)["data"]
    rows = (
        (alias["name"], output.local_time(alias["changed_at"]), alias["model"]) for alias in aliases
    )
    output.show(aliases, json_path, output.listing(("name", "since", "model"), rows))


@app.command("set")
@with_settings(CONNECTION)
def set_alias(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="What apps ask for.")],
    model: Annotated[
        str, typer.Argument(help="Base or fine-tuned model, with @Q8_0 or such to fix its file.")
    ],
    json_path: JsonPath = None,
) -> None:
    """Make an alias, or let it mean another model; requests under way go on."""
    with connect(settings) as client:
        alias = client.put(_path(name), {"model": model})
    output.show(alias, json_path, f"{alias['name']} means {alias['model']}")


@app.command("delete")
@with_settings(CONNECTION)
def delete(settings: Settings, name: str, json_path: JsonPath = None) -> None:
    """Delete an alias; the model stays."""
    with connect(settings) as client:
        deleted = client.delete(_path(name))
    output.show(deleted, json_path, f"{name} deleted")


def _path(name: str) -> str:
    return f"{ALIASES}/{quote(name, safe='')}"
