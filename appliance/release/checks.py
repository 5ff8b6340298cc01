"""Hold a GGUF against the base's tokenizer and chat template; every difference is an error, none a warning.

Does not compare weights: whether the file answers as the trained model did is not checked here.
What goes wrong in other people's exports, and silently: another chat template, another end-of-turn token,
a second BOS, a tokenizer that splits differently, weights that decode to NaN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from appliance import gguf_header
from appliance.errors import ChildFailed
from appliance.prompts import ChatTemplate
from appliance.release.llamacpp import Model

_USER = {"role": "user", "content": "It's 12:30 on 2024-01-01,  2 lines:\n\n  23 x\t4?"}
_CODE = {
    "role": "assistant",
    "content": "def f(x):\n    return [x, 'y']  # 日本語 12 ½ Ünïcödé 😀\n",
}
CONVERSATIONS = ((_USER,), (_USER, _CODE), (_USER, _CODE, {"role": "user", "content": "Thanks!"}))
GREEDY_TOKENS = 4


def check(path: Path, tokenizer: Any, *, end_of_turn_token_id: int | None, threads: int) -> None:
    """Hold `path` against the base's tokenizer; raises ChildFailed (`release_check_failed`)."""
    source = tokenizer.get_chat_template()
    metadata = gguf_header.read(path).metadata
    _require(path, "chat template", metadata.get("tokenizer.chat_template"), source)
    if end_of_turn_token_id is not None:
        found = metadata.get("tokenizer.ggml.eos_token_id")
        _require(path, "eos token id", found, end_of_turn_token_id)
    template = ChatTemplate.of_tokenizer(source, tokenizer)
    with Model(path, threads=threads) as model:
        _check_tokens(path, model, tokenizer, template)
        _check_decoding(path, model, template)


def _check_tokens(path: Path, model: Model, tokenizer: Any, template: ChatTemplate) -> None:
    for messages in CONVERSATIONS:
        text = template.render(messages, add_generation_prompt=messages[-1]["role"] == "user")
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        _require(path, f"tokens of {text!r}", model.tokenize(text), expected)


def _check_decoding(path: Path, model: Model, template: ChatTemplate) -> None:
    prompt = model.tokenize(template.render((_USER,), add_generation_prompt=True))
    _, logits = model.greedy(prompt, GREEDY_TOKENS)
    _require(path, "number of logits that are not finite", int((~np.isfinite(logits)).sum()), 0)


def _require(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ChildFailed(
            "release_check_failed",
            f"{path.name}: {what} should be {expected!r}; found {found!r}",
            next_step="the release was not made; report this with the base model's name",
        )
