"""`appliance keys`: API keys for the apps that call."""

from __future__ import annotations

from typing import Annotated

import typer

from appliance.cli import output
from appliance.cli.client import connect
from appliance.cli.options import CONNECTION, JsonPath, with_settings
from appliance.settings import Settings

app = typer.Typer(help="API keys for the apps that call.", no_args_is_help=True)


@app.command("list")
@with_settings(CONNECTION)
def list_keys(settings: Settings, json_path: JsonPath = None) -> None:
    """List keys; their secrets are not kept anywhere."""
    with connect(settings) as client:
        keys = client.get("/api/v1/keys")["data"]
    rows = (
        (
            key["id"],
            output.local_time(key["created_at"]),
            "admin" if key["admin"] else "app",
            key["name"],
        )
        for key in keys
    )
    output.show(keys, json_path, output.listing(("id", "created", "for", "name"), rows))


@app.command("create")
@with_settings(CONNECTION)
def create(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Which app it is for.")],
    json_path: JsonPath = None,
) -> None:
    """Make a key for an app; its secret is shown this once."""
    with connect(settings) as client:
        key = client.post("/api/v1/keys", {"name": name})
    output.show(key, json_path, f"id   {key['id']}\nkey  {key['secret']}  (shown this once)")


@app.command("revoke")
@with_settings(CONNECTION)
def revoke(settings: Settings, key_id: str, json_path: JsonPath = None) -> None:
    """Revoke a key; it stops working at once."""
    with connect(settings) as client:
        revoked = client.delete(f"/api/v1/keys/{key_id}")
    output.show(revoked, json_path, f"{key_id} revoked")
