"""The root of the command line: which verbs there are."""

from __future__ import annotations

import typer

from appliance.cli import (
    aliases,
    chat,
    demo,
    doctor,
    files,
    fit,
    jobs,
    keys,
    models,
    profile,
    serve,
    stop,
)

app = typer.Typer(
    name="appliance",
    help="Fine-tune, release and serve language models on this box.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("serve")(serve.serve)
app.command("stop")(stop.stop)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("profile")(profile.profile)
app.command("fit")(fit.fit)
app.command("chat")(chat.chat)
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(aliases.app, name="aliases")
app.add_typer(keys.app, name="keys")
