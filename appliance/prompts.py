"""The one place that renders a chat template: trainer, engine and datasets all call it.

Templates come from model files, that is from outside: they run in Jinja's immutable sandbox and see
nothing but the messages and tools. Only the model's own template is ever rendered, never one from a request.

Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import InvalidInput

TEMPLATE_LIMIT_BYTES = 256 * 1024
MAX_PRODUCT = 1 << 20
# Of what comes out: tokenizers take many times the memory of a text, and end the process where there is none.
RENDERED_LIMIT_CHARACTERS = 1 << 24
MAX_INDENT = 64


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which limits ranges but neither powers nor repetitions, such as 'x' * 4000000000."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply numbers, repeat texts; nothing that grows out of bounds."""
        if operator == "**" or _size_of(left) * _size_of(right) > MAX_PRODUCT:
            raise jinja2.TemplateError(f"{operator} may give no more than {MAX_PRODUCT}")
        return super().call_binop(context, operator, left, right)


def _size_of(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else max(1, len(value))


class Template(Protocol):
    """What renders conversations: in this process, or in another one."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """As `ChatTemplate.render`."""


class ChatTemplate:
    """A compiled chat template with the special tokens that it may name."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        if len(source.encode()) > TEMPLATE_LIMIT_BYTES:
            raise InvalidInput(
                "template_too_large",
                f"a chat template may have {TEMPLATE_LIMIT_BYTES} bytes; this one has more",
            )
        # The two settings and the globals are what Hugging Face's own renderer provides
        # (transformers/utils/chat_template_utils.py), so that the same source gives the same text.
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _to_json
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        self.tells_time = "strftime_now" in source
        """Whether what it renders depends on the day."""
        try:
            self._template = environment.from_string(source)
        except Exception as exc:
            # A compiler of foreign code: nested deep enough, it ends by other errors than its own.
            raise InvalidInput(
                "invalid_template", f"the model's chat template should compile, but: {exc}"
            ) from exc

    @classmethod
    def of_tokenizer(cls, source: str, tokenizer: Any) -> ChatTemplate:
        """The template `source` with the special tokens of a Hugging Face tokenizer."""
        return cls(source, bos_token=tokenizer.bos_token or "", eos_token=tokenizer.eos_token or "")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, with the opening of the next answer if asked for.

        `tools` are in OpenAI's form; many templates ignore them.
        """
        try:
            rendered = self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                # Absent or not, they are defined: templates ask whether they are none.
                tools=tools,
                documents=None,
                **self._special,
            )
        except Exception as exc:
            # The template is foreign code: whatever it raises says that it does not take these messages.
            raise InvalidInput(
                "template_refused",
                f"the model's chat template should accept these messages, but: {exc}",
                param="messages",
            ) from exc
        if len(rendered) > RENDERED_LIMIT_CHARACTERS:
            raise InvalidInput(
                "template_refused",
                f"the model's chat template should write at most {RENDERED_LIMIT_CHARACTERS} characters; for "
                f"these messages it writes {len(rendered)}",
                param="messages",
            )
        return rendered


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(value: object, **options: Any) -> str:
    options.setdefault("ensure_ascii", False)
    indent = options.get("indent") or 0
    if (len(indent) if isinstance(indent, str) else indent) > MAX_INDENT:
        raise jinja2.TemplateError(f"indent may be no more than {MAX_INDENT}")
    return json.dumps(value, **options)
