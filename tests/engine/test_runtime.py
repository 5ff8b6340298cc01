"""The parts below a request, in this process: tokens, text and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance.engine.protocol import Message
from appliance.engine.text import TextStream
from appliance.errors import ChildFailed

if TYPE_CHECKING:
    from appliance.engine.runtime import Runtime

pytestmark = pytest.mark.llama

MIXED = "naïve 日本語の文 👩‍👩‍👧 😀 done"


@pytest.fixture(scope="module")
def runtime(starter_gguf: Path) -> Runtime:
    from appliance.engine.runtime import Runtime

    return Runtime(starter_gguf, n_ctx=256, threads=1, on_progress=lambda _fraction: None)


def test_characters_spread_over_tokens_are_streamed_whole(runtime: Runtime) -> None:
    pieces = [runtime.piece(token) for token in runtime.tokenize(MIXED)]
    broken = [piece for piece in pieces if "\ufffd" in piece.decode("utf-8", "replace")]
    assert len(broken) > 5
    text = TextStream()
    released = [text.feed(piece) for piece in pieces]
    assert "".join(released) == MIXED
    assert text.finish() == ""


def test_the_prompt_is_the_template_with_its_special_tokens_and_no_others(runtime: Runtime) -> None:
    tokens = runtime.prompt(
        [Message(role="system", content="S"), Message(role="user", content="U")]
    )
    # <|im_start|> is 1 and <|im_end|> is 2 in this vocabulary.
    assert [token for token in tokens if token in (1, 2)] == [1, 2, 1, 2, 1]
    assert tokens[0] == 1
    assert runtime.piece(1) == b""
    assert runtime.ends_answer(2) and not runtime.ends_answer(1)


def test_a_zero_byte_does_not_cut_the_prompt(runtime: Runtime) -> None:
    tokens = runtime.tokenize("a\x00b")
    assert b"".join(runtime.piece(token) for token in tokens) == b"a\x00b"


def test_nothing_is_reused_after_a_failed_decode(runtime: Runtime) -> None:
    from appliance.engine.sequence import CachedSequence

    sequence = CachedSequence(runtime)
    prompt = runtime.tokenize("one two three four five six seven eight nine ten")
    assert sequence.begin(prompt) == 0
    sequence.decode(prompt)
    # A hole behind its back: llama.cpp refuses tokens that do not follow the last one.
    assert runtime.forget_from(5)
    with pytest.raises(ChildFailed) as caught:
        sequence.decode(prompt[:1])
    assert caught.value.code == "decode_failed"
    assert sequence.begin(prompt) == 0
    sequence.decode(prompt)
    assert sequence.begin(prompt) == len(prompt) - 1


def test_memory_that_cannot_forget_a_part_is_emptied(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sliding-window and recurrent models have it."""
    from appliance.engine.sequence import CachedSequence

    sequence = CachedSequence(runtime)
    runtime.forget_all()
    prompt = runtime.tokenize("one two three four")
    sequence.decode(prompt)
    monkeypatch.setattr(runtime, "forget_from", lambda _position: False)
    assert sequence.begin(prompt) == 0
    sequence.decode(prompt)
    longer = [*prompt, *prompt]
    assert sequence.begin(longer) == len(prompt)


def test_reused_tokens_give_the_very_logits_of_a_fresh_pass_in_the_same_parts(
    runtime: Runtime,
) -> None:
    """What a reused prefix may change comes from the parts alone, and from nothing that was kept."""
    import llama_cpp

    from appliance.engine.sequence import CachedSequence

    def logits() -> list[float]:
        return list(llama_cpp.llama_get_logits_ith(runtime.context, -1)[: runtime.n_vocab])

    prefix = runtime.tokenize("one two three four five six seven eight")
    old, new = runtime.tokenize(" nine ten eleven"), runtime.tokenize(" is a number of")
    sequence = CachedSequence(runtime)
    runtime.forget_all()
    for part in (prefix, old):
        sequence.decode(part)
    assert sequence.begin([*prefix, *new]) == len(prefix)
    sequence.decode(new)
    reused = logits()
    runtime.forget_all()
    fresh = CachedSequence(runtime)
    for part in (prefix, new):
        fresh.decode(part)
    assert len(reused) > 1000
    assert reused == logits()
