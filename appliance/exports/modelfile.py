"""A Modelfile for Ollama: which file, its chat template in Ollama's language, and where an answer ends.

Ollama renders Go templates (docs/template.md of ollama/ollama) and knows the GGUF's own, Jinja, only by
likeness to some that it lists. So the fixed texts around each role's messages are found by rendering, written
as a Go template, and believed only if they give what the model's own template gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from appliance.errors import InvalidInput
from appliance.prompts import ChatTemplate

# Stand for contents: no template has them, and none changes them.
_MARKS = {"system": "SYS7f3a", "user": "USR91bc", "assistant": "AST5d2e"}
_SYSTEM = {"role": "system", "content": "Be brief."}
_HELLO = {"role": "user", "content": "Hi"}
_MORE = ({"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "A {b}\n c"})
_PROOFS = ((_HELLO,), (_SYSTEM, _HELLO), (_HELLO, *_MORE), (_SYSTEM, _HELLO, *_MORE))


class _Frames(NamedTuple):
    """The texts around a conversation's messages: `around` has those before and behind each role's."""

    without_system: str
    around: Mapping[str, tuple[str, str]]
    generation: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        parts = [] if messages[0]["role"] == "system" else [self.without_system]
        for each in messages:
            before, behind = self.around[each["role"]]
            parts += [before, each["content"], behind]
        return "".join([*parts, self.generation])


def modelfile(
    gguf_name: str, template: ChatTemplate | None, stops: Sequence[str], licence: str
) -> str:
    """The whole file; `stops` are the texts of the tokens that end an answer.

    `template` has to leave away a beginning that the GGUF lets its reader add (BOS).
    """
    lines = [f"FROM ./{gguf_name}"]
    if (frames := _frames(template)) is not None:
        lines.append(f'TEMPLATE """{_go_template(frames)}"""')
    else:
        lines.append(
            "# The model's chat template has no equal in Ollama's language: Ollama will guess one."
        )
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    # One line, so that it cannot go on as another instruction.
    lines.append(f"LICENSE {json.dumps(' '.join(licence.split()), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _frames(template: ChatTemplate | None) -> _Frames | None:
    """None unless the template is of this kind: fixed texts around each message, whatever came before."""
    if template is None or template.tells_time:
        return None
    try:
        frames = _found(template)
        if any(
            template.render(each, add_generation_prompt=True) != frames.render(each)
            for each in _PROOFS
        ):
            return None
    except InvalidInput:
        return None  # It takes no system message, for one.
    around = (text for pair in frames.around.values() for text in pair)
    texts = (frames.without_system, frames.generation, *around)
    return None if any("{{" in text or '"""' in text for text in texts) else frames


def _found(template: ChatTemplate) -> _Frames:
    def parts(*roles: str, generate: bool = False) -> list[str]:
        messages = [{"role": role, "content": _MARKS[role]} for role in roles]
        text = template.render(messages, add_generation_prompt=generate)
        return _between(text, [_MARKS[role] for role in roles])

    before_user_alone, behind_user = parts("user")
    *_, behind_assistant = parts("user", "assistant")
    before_system, after_system, after_user, after_assistant, _ = parts(
        "system", "user", "assistant", "user"
    )
    *_, opened = parts("user", generate=True)
    before_user = after_assistant.removeprefix(behind_assistant)
    return _Frames(
        without_system=before_user_alone.removesuffix(before_user),
        around={
            "system": (before_system, after_system.removesuffix(before_user)),
            "user": (before_user, behind_user),
            "assistant": (after_user.removeprefix(behind_user), behind_assistant),
        },
        generation=opened.removeprefix(behind_user),
    )


def _between(text: str, marks: Sequence[str]) -> list[str]:
    """What is before, between and behind `marks`; raises InvalidInput where one is not there in turn."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise InvalidInput("template_refused", "the chat template should show every message")
        parts.append(before)
    return [*parts, text]


def _go_template(frames: _Frames) -> str:
    branches = "".join(
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{behind}'
        for number, (role, (before, behind)) in enumerate(frames.around.items())
    )
    without = ""
    if frames.without_system:
        without = (
            f'{{{{ if ne (index .Messages 0).Role "system" }}}}{frames.without_system}{{{{ end }}}}'
        )
    return (
        f"{without}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{frames.generation}"
    )
