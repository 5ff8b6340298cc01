"""`appliance models`: list what there is, import, export and delete them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from appliance.child_records import Progress
from appliance.cli import output
from appliance.cli.client import connect
from appliance.cli.follow import LiveView, live_view
from appliance.cli.local_state import opened
from appliance.cli.options import CONNECTION, JsonPath, with_settings
from appliance.errors import InvalidInput
from appliance.records import BaseModel, ExportForm
from appliance.settings import Settings

app = typer.Typer(help="Base models and fine-tuned ones.", no_args_is_help=True)


@app.command("list")
@with_settings(CONNECTION)
def list_models(settings: Settings, json_path: JsonPath = None) -> None:
    """List models with licence and source, or base."""
    with connect(settings) as client:
        found = client.get("/api/v1/models")
    rows = [
        (base["name"], _types(base), f"{base['licence']}, from {base['source']}")
        for base in found["base_models"]
    ]
    rows += [
        (release["name"], _types(release), f"fine-tuned from {release['base_model']}")
        for release in found["releases"]
    ]
    output.show(found, json_path, output.listing(("name", "files", "origin"), rows))


@app.command("recommend")
@with_settings(("state_dir", "profile", "profile_dir", "profile_override_file"))
def recommend(settings: Settings, json_path: JsonPath = None) -> None:
    """Name open base models to bring in for this device, and why; nothing is fetched."""
    from appliance.hardware import catalogue, selection
    from appliance.jobs.recommend import recommend as recommended

    selected = selection.select(settings)
    models = recommended(selected.profile, selected.machine, catalogue.load(settings.profile_dir))
    rows = (
        (
            model.repository,
            f"{model.file_bytes / 1e9:.1f} GB {model.quantization}",
            ", ".join(model.techniques),
            "chat" if model.chat else "base",
            f"{model.licence}; {model.languages}; {model.reason}",
        )
        for model in models
    )
    columns = ("repository", "file", "techniques", "kind", "licence, languages, why")
    output.show(models, json_path, output.listing(columns, rows))


@app.command("import")
@with_settings(
    ("state_dir", "profile", "profile_dir", "profile_override_file", "converter_dir", "threads")
)
def import_model(
    settings: Settings,
    source: Annotated[Path, typer.Argument(help="Hugging Face directory, or one GGUF file.")],
    name: Annotated[str, typer.Option(help="What the model is to be called here.")],
    licence: Annotated[str, typer.Option(help="Its licence, such as Apache-2.0.")],
    origin: Annotated[str, typer.Option(help="Where it was brought from, in words.")],
    chat_template: Annotated[
        Path | None,
        typer.Option(help="A file with the chat template (Jinja), for a model that brings none."),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Check a base model, store it, and make it servable; the daemon may be running or not."""
    base = import_base(settings, source, name, licence, origin, chat_template)
    output.show(
        base,
        json_path,
        f"{base.name}: {base.architecture}, {base.parameters:,} parameters, {base.licence}",
    )


def import_base(
    settings: Settings,
    source: Path,
    name: str,
    licence: str,
    origin: str,
    chat_template: Path | None = None,
) -> BaseModel:
    """Run an import in the foreground, showing its progress."""
    import asyncio

    from appliance.child_records import ImportSpec
    from appliance.daemon import PROGRAMS
    from appliance.jobs import base_import

    spec = ImportSpec(
        name=name,
        source=str(source.absolute()),
        licence=licence,
        origin=origin,
        chat_template=None if chat_template is None else _text_of(chat_template),
    )
    with opened(settings) as (store, selected, ledger), live_view() as view:
        base = asyncio.run(
            base_import.import_base(
                store,
                settings,
                selected,
                ledger,
                PROGRAMS,
                spec,
                lambda lines: _show(view, lines),
            )
        )
        view.finish()
        return base


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(
            "unreadable_template",
            f"{path} should be a chat template in UTF-8, but: {exc}",
            param="chat_template",
        ) from exc


@app.command("delete")
@with_settings(CONNECTION)
def delete_model(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="A fine-tuned model, or a base model.")],
    json_path: JsonPath = None,
) -> None:
    """Delete a model with its files; of a fine-tuned one also its adapter and its job's copy of the data."""
    with connect(settings) as client:
        deleted = client.delete(f"/v1/models/{quote(name, safe='')}")
    output.show(deleted, json_path, f"{name} is deleted")


@app.command("export")
@with_settings(("state_dir", "profile", "profile_dir", "profile_override_file", "threads"))
def export_model(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="A fine-tuned model.")],
    directory: Annotated[Path, typer.Argument(help="A new directory, such as one on a USB disk.")],
    form: Annotated[
        list[ExportForm] | None,
        typer.Option(
            help="What to take along: gguf (with a Modelfile for Ollama), adapter (for PEFT and llama.cpp), "
            "merged (safetensors for other servers). Repeat it for several. [default: gguf, adapter]"
        ),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Write a fine-tuned model, its model card and its bill of materials into a directory."""
    written = _export(
        settings, name, directory.absolute(), form or [ExportForm.GGUF, ExportForm.ADAPTER]
    )
    files = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    found = {"name": name, "directory": str(written), "files": files}
    output.show(found, json_path, f"{written}: {', '.join(files)}")


def _export(settings: Settings, name: str, directory: Path, forms: list[ExportForm]) -> Path:
    import asyncio

    from appliance.daemon import PROGRAMS
    from appliance.jobs.export import export

    with opened(settings) as (store, _, ledger), live_view() as view:
        written = asyncio.run(
            export(
                store,
                settings,
                ledger,
                PROGRAMS,
                name,
                directory,
                forms,
                lambda lines: _show(view, lines),
            )
        )
        view.finish()
        return written


def _show(view: LiveView, lines: list[Progress]) -> None:
    for line in lines:
        view.say(line.message)
        if line.data and "total_steps" in line.data:
            view.advance("release", line.data["step"] - 1, line.data["total_steps"])


def _types(model: dict[str, list[dict[str, str]]]) -> str:
    return ", ".join(file["quantization"] for file in model["files"])
