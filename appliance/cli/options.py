"""Command-line flags made from the settings, so that each knob is declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args

import msgspec
import typer

from appliance import settings

# What a command that talks to the daemon needs to find it.
CONNECTION = ("state_dir", "host", "port")
JsonPath = Annotated[
    str | None, typer.Option("--json", help="Also write the result as JSON to this path, or -.")
]


def with_settings(
    names: Iterable[str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for each named setting (default: all) and its `settings` argument."""
    fields = {field.name: field for field in msgspec.structs.fields(settings.Settings)}
    chosen = list(fields) if names is None else list(names)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> Any:
            flags = {name: arguments.pop(name) for name in chosen}
            return command(settings=settings.load(flags), **arguments)

        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "settings"
        ]
        parameters = [*own, *(_flag(fields[name]) for name in chosen)]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate


def _flag(field: msgspec.structs.FieldInfo) -> inspect.Parameter:
    _kind, meta = get_args(field.type)
    flag = "--" + field.name.replace("_", "-")
    variable = settings.ENVIRONMENT_PREFIX + field.name.upper()
    text = f"{meta.description} [default: {field.default}] [env: {variable}]"
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, typer.Option(flag, help=text, show_default=False)],
    )
