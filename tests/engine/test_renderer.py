"""A template is rendered in a process of its own, and one that takes too long costs that process alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from appliance.engine.renderer import Renderer, TemplateTooSlow
from appliance.errors import ChildFailed, InvalidInput
from appliance.prompts import ChatTemplate
from tests.daemon_process import state_of, wait_for

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ bos_token }}{{ eos_token }}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Slow for a certain word alone: a loop within loops, each as long as the sandbox lets a range be.
SLOW = (
    "{% if messages[0].content == 'slow' %}{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}{% endif %}" + CHATML
)
# Doubles a text until no memory holds it; each step is within the sandbox's bound for products.
LARGE = (
    "{% if messages[0].content == 'large' %}{% set box = namespace(text='x' * 1000000) %}"
    "{% for a in range(60) %}{% set box.text = box.text ~ box.text %}{% endfor %}{% endif %}"
    + CHATML
)

Start = Callable[..., Renderer]


@pytest.fixture
def start() -> Iterator[Start]:
    started = []

    def renderer(template: str, **options: Any) -> Renderer:
        made = Renderer(template, bos_token="<s>", eos_token="</s>", **options)
        started.append(made)
        return made

    yield renderer
    for each in started:
        each.close()


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def pid(renderer: Renderer) -> int:
    assert renderer._program is not None
    return renderer._program[0].pid


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"maxLength": 10**30}}}


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("opening", [True, False])
@pytest.mark.parametrize("text", ["hello", "", "ü\u2028\U0001f600", "{{ 7 * 7 }}", "x" * 3_000_000])
def test_text_is_that_of_the_template_itself(
    start: Start, text: str, opening: bool, tools: list[dict[str, Any]] | None
) -> None:
    here = ChatTemplate(CHATML, bos_token="<s>", eos_token="</s>")
    expected = here.render(said(text), add_generation_prompt=opening, tools=tools)
    found = start(CHATML).render(said(text), add_generation_prompt=opening, tools=tools)
    assert found == expected


def test_one_process_serves_all_threads(start: Start) -> None:
    renderer = start(CHATML)
    first = pid(renderer)
    texts = [str(number) * 100 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        rendered = list(
            pool.map(lambda text: renderer.render(said(text), add_generation_prompt=False), texts)
        )
    assert all(text in found for text, found in zip(texts, rendered, strict=True))
    assert pid(renderer) == first


def test_template_past_its_time_is_killed_and_the_next_conversation_answered(start: Start) -> None:
    renderer = start(SLOW, limit_seconds=0.5)
    first = pid(renderer)
    with pytest.raises(TemplateTooSlow, match=r"at most 0\.5 s") as caught:
        renderer.render(said("slow"), add_generation_prompt=True)
    assert (caught.value.code, caught.value.param) == ("template_too_slow", "messages")
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert "quick" in renderer.render(said("quick"), add_generation_prompt=True)
    assert pid(renderer) != first


def test_template_that_wants_all_memory_is_refused_it(start: Start) -> None:
    renderer = start(LARGE, limit_seconds=20)
    with pytest.raises((InvalidInput, ChildFailed)):
        renderer.render(said("large"), add_generation_prompt=True)
    assert "small" in renderer.render(said("small"), add_generation_prompt=True)


def test_process_that_was_killed_meanwhile_is_replaced_without_a_word(start: Start) -> None:
    renderer = start(CHATML)
    first = pid(renderer)
    os.kill(first, signal.SIGKILL)
    assert renderer._program is not None
    wait_for(lambda: renderer._program[0].poll() is not None, "the end of the process")
    assert "again" in renderer.render(said("again"), add_generation_prompt=True)
    assert pid(renderer) != first


def kill_at_work(renderer: Renderer, but: int = 0) -> int:
    """Kill the process once it works, if it is another than `but`."""

    def works() -> bool:
        # An idle one sleeps until it is told something.
        return (
            renderer._program is not None
            and but != pid(renderer)
            and state_of(pid(renderer)) == "R"
        )

    wait_for(works, "a process at work")
    killed = pid(renderer)
    os.kill(killed, signal.SIGKILL)
    return killed


def test_process_that_is_killed_at_work_has_one_successor(start: Start) -> None:
    renderer = start(SLOW, limit_seconds=2)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(renderer.render, said("slow"), add_generation_prompt=True)
        kill_at_work(renderer)
        with pytest.raises(TemplateTooSlow):
            asked.result(20)
        asked = pool.submit(renderer.render, said("slow"), add_generation_prompt=True)
        kill_at_work(renderer, but=kill_at_work(renderer))
        with pytest.raises(ChildFailed) as caught:
            asked.result(20)
    assert caught.value.code == "renderer_died"
    assert "again" in renderer.render(said("again"), add_generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{% for %}", "invalid_template"),
        ("x" * (300 << 10), "template_too_large"),
        ("{{ raise_exception('no') }}", "template_refused"),
        ("{{ messages.__class__.__mro__ }}", "template_refused"),
        ("{{ 'x' * 4000000000 }}", "template_refused"),
    ],
)
def test_what_the_template_refuses_is_the_same_error(
    start: Start, template: str, code: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        start(template).render(said("hello"), add_generation_prompt=True)
    assert caught.value.code == code


def test_text_that_is_not_unicode_is_the_callers_fault_and_costs_no_process(start: Start) -> None:
    renderer = start(CHATML)
    first = pid(renderer)
    with pytest.raises(InvalidInput) as caught:
        renderer.render(said("\ud800"), add_generation_prompt=True)
    assert caught.value.code == "invalid_text"
    assert "fine" in renderer.render(said("fine"), add_generation_prompt=True)
    assert pid(renderer) == first
