"""Make sure that a base model can hold a conversation and knows when its turn is over.

Works on a directory of our own (a copy), whose JSON files it may set right. Knows nothing of weights.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from appliance import batch, durable
from appliance.errors import InvalidInput
from appliance.prompts import ChatTemplate

# Stands for an assistant's answer, so that what the template puts behind one can be found.
_ANSWER = "Forty-two."
TEMPLATE_SECONDS = 10.0
_TEMPLATE = "chat_template.jinja"  # where transformers looks for it
_TURN = {"role": "user", "content": "Hello"}


def give_template(hf: Path, source: str) -> None:
    """Write the operator's template into `hf`; raises InvalidInput if the model brings one of its own."""
    if load_tokenizer(hf).chat_template:
        raise InvalidInput(
            "two_chat_templates",
            "a chat template can be given to a model that has none; this one brings its own",
            param="chat_template",
            next_step="leave the template away",
        )
    (hf / _TEMPLATE).write_text(source, encoding="utf-8")


def prepare(hf: Path, reporter: batch.Reporter) -> None:
    """Check tokenizer and chat template of `hf`; write what generation needs to stop after a turn."""
    tokenizer = load_tokenizer(hf)
    with _little_time():
        template = _compile(hf, tokenizer)
        template.render([_TURN], add_generation_prompt=True)
        end_of_turn = _end_of_turn_token_id(tokenizer, template)
    if end_of_turn is None:
        reporter.report(
            "end_of_turn",
            "the chat template should end an answer with a special token, but it does not; "
            f"answers will end with {tokenizer.eos_token!r} only",
            level="warn",
        )
        end_of_turn = tokenizer.eos_token_id
    _agree_on_end_of_turn(hf, tokenizer, end_of_turn, reporter)


@contextlib.contextmanager
def _little_time() -> Iterator[None]:
    """Nothing that a template does with two short messages takes longer than this."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"it takes more than {TEMPLATE_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, TEMPLATE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load_tokenizer(directory: Path) -> Any:
    """The directory's tokenizer; raises InvalidInput if there is none that loads."""
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as exc:
        # Whatever a parser of foreign files raises, it means that the files are refused.
        raise InvalidInput(
            "invalid_tokenizer",
            f"the tokenizer should load, but: {exc}",
            next_step="add tokenizer.json and tokenizer_config.json from the model's publisher",
        ) from exc


def _compile(hf: Path, tokenizer: Any) -> ChatTemplate:
    if not tokenizer.chat_template:
        raise InvalidInput(
            "no_chat_template",
            "the model should bring a chat template; it has none",
            next_step="choose an instruct model, or name a template with --chat-template",
        )
    source = tokenizer.get_chat_template()
    inline = _read(hf / "tokenizer_config.json").get("chat_template", source)
    if inline != source:
        # transformers reads the one and llama.cpp's converter the other.
        raise InvalidInput(
            "two_chat_templates",
            "chat_template.jinja and tokenizer_config.json should hold the same chat template; "
            "they differ",
            next_step="remove one of the two",
        )
    return ChatTemplate.of_tokenizer(source, tokenizer)


def _end_of_turn_token_id(tokenizer: Any, template: ChatTemplate) -> int | None:
    """The first special token that the template puts behind an assistant's answer."""
    messages = [_TURN, {"role": "assistant", "content": _ANSWER}]
    text = template.render(messages, add_generation_prompt=False)
    _, found, behind = text.rpartition(_ANSWER)
    if not found:
        raise InvalidInput(
            "invalid_template", "the chat template should show an assistant's answer; it drops it"
        )
    special = set(tokenizer.all_special_ids)
    special |= {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((id_ for id_ in ids if id_ in special), None)


def _agree_on_end_of_turn(
    hf: Path, tokenizer: Any, end_of_turn: int | None, reporter: batch.Reporter
) -> None:
    """Make the tokenizer's eos token the end of a turn, and generation stop at it.

    llama.cpp and the trainer look at the tokenizer alone; a model whose eos ends documents, not turns,
    would talk on after its answer. The former eos still ends generation too.
    """
    config = AutoConfig.from_pretrained(hf, local_files_only=True, trust_remote_code=False)
    path = hf / "generation_config.json"
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = _read(path) or {
        name: value for name in names if (value := getattr(config, name, None)) is not None
    }
    stops = _as_list(generation.get("eos_token_id"))
    if end_of_turn is None:
        raise InvalidInput(
            "no_end_of_turn",
            "the model should have an eos token; neither its chat template nor its tokenizer names one",
            next_step="choose an instruct model",
        )
    if tokenizer.eos_token_id != end_of_turn or end_of_turn not in stops:
        token = tokenizer.convert_ids_to_tokens(end_of_turn)
        reporter.report(
            "end_of_turn",
            f"the chat template ends an answer with {token!r}; the tokenizer's eos token was "
            f"{tokenizer.eos_token!r} and generation stopped at {stops}: both now name {token!r}",
            level="warn",
        )
        stops = list(dict.fromkeys([end_of_turn, *_as_list(tokenizer.eos_token_id), *stops]))
        _set_eos_token(hf, token, end_of_turn)
    generation["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    durable.write_json(path, generation)


def _set_eos_token(hf: Path, token: str, token_id: int) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if content := _read(hf / name):
            durable.write_json(hf / name, {**content, "eos_token": token})
    # The converter asks config.json where a tokenizer's own files leave the question open.
    path = hf / "config.json"
    durable.write_json(path, {**_read(path), "eos_token_id": token_id})


def _as_list(ids: Any) -> list[int]:
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.exists() else {}
