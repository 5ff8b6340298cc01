"""`appliance keys`: API keys for the apps that call."""

from __future__ import annotations

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
    columns = ("id", "name", "admin", "created_at")
    output.show(
        keys,
        json_path,
        output.listing("Keys", columns, ([key[c] for c in columns] for key in keys)),
    )


@app.command("create")
@with_settings(CONNECTION)
def create(settings: Settings, name: str, json_path: JsonPath = None) -> None:
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
