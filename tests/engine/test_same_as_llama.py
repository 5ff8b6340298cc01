"""Alone, an answer is token for token that of llama-cpp-python's own `Llama`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance.engine.protocol import Delta, Generate, Sampling
from tests.engine.asking import add, user

if TYPE_CHECKING:
    from appliance.engine.runtime import Runtime

pytestmark = [pytest.mark.llama, pytest.mark.slow]

THINGS = (
    "a river",
    "the moon",
    "an oak",
    "bread",
    "a violin",
    "the sea",
    "a bridge",
    "snow",
    "a cat",
    "ink",
)
FORMS = (
    "Describe {} in one sentence.",
    "Write a short poem of {}.",
    "Why do people like {}?",
    "Name three facts about {}.",
    "Explain {} to a child, and say where it can be found, what it is good for and how it came to be.",
)
QUESTIONS = [form.format(thing) for form in FORMS for thing in THINGS]
ANSWER_TOKENS = 24


def greedy(runtime: Runtime, question: str) -> str:
    """The answer of an engine that holds nothing else."""
    from appliance.engine.scheduler import Scheduler

    for sequence in range(runtime.n_sequences):
        runtime.forget(sequence)
    scheduler = Scheduler(runtime, 1)
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS)
    add(scheduler, Generate(id=1, prompt=user(question), sampling=sampling))
    text = ""
    while scheduler.busy:
        text += "".join(event.text for event in scheduler.step() if isinstance(event, Delta))
    return text


def test_greedy_answers_are_those_of_llama_itself(starter_gguf: Path) -> None:
    """Same file, threads, batch sizes. Where the cells lie changes the last digits: both begin empty."""
    from llama_cpp import Llama

    from appliance.engine.runtime import N_BATCH, Runtime

    n_ctx, threads = 1024, 2
    runtime = Runtime(
        starter_gguf, n_ctx=n_ctx, threads=threads, slots=16, on_progress=lambda _fraction: None
    )
    llama = Llama(
        str(starter_gguf),
        n_ctx=n_ctx,
        n_batch=N_BATCH,
        n_ubatch=N_BATCH,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,
        verbose=False,
    )
    answers, unlike = set(), []
    for question in QUESTIONS:
        llama.reset()
        messages = [{"role": turn.role, "content": turn.content} for turn in user(question)]
        whole = llama.create_chat_completion(messages, temperature=0.0, max_tokens=ANSWER_TOKENS)
        expected = whole["choices"][0]["message"]["content"]
        answer = greedy(runtime, question)
        answers.add(answer)
        if answer != expected:
            unlike.append((question, answer, expected))
    runtime.vocabulary.close()
    llama.close()
    assert len(QUESTIONS) == 50
    assert len(answers) > 40
    assert unlike == []
