"""`appliance files`: upload, list, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import output
from appliance.cli.client import connect
from appliance.cli.options import CONNECTION, JsonPath, with_settings
from appliance.settings import Settings

app = typer.Typer(help="Datasets and other uploaded files.", no_args_is_help=True)


@app.command("upload")
@with_settings(CONNECTION)
def upload(
    settings: Settings,
    path: Annotated[Path, typer.Argument(help="JSONL file of chat examples.")],
    purpose: Annotated[
        str, typer.Option(help="fine-tune for training data; user_data for anything else.")
    ] = "fine-tune",
    json_path: JsonPath = None,
) -> None:
    """Upload a file and print its id; training data is checked row by row."""
    with connect(settings) as client:
        file = client.upload("/v1/files", path.name, path.read_bytes(), {"purpose": purpose})
    output.show(file, json_path, file["id"])


@app.command("list")
@with_settings(CONNECTION)
def list_files(settings: Settings, json_path: JsonPath = None) -> None:
    """List uploaded files, newest first."""
    with connect(settings) as client:
        files = client.get("/v1/files")["data"]
    columns = ("id", "created", "bytes", "purpose", "filename")
    rows = (
        (
            file["id"],
            output.local_time(file["created_at"]),
            file["bytes"],
            file["purpose"],
            file["filename"],
        )
        for file in files
    )
    output.show(files, json_path, output.listing(columns, rows))


@app.command("delete")
@with_settings(CONNECTION)
def delete(settings: Settings, file_id: str, json_path: JsonPath = None) -> None:
    """Delete a file."""
    with connect(settings) as client:
        deleted = client.delete(f"/v1/files/{file_id}")
    output.show(deleted, json_path, f"{file_id} deleted")
