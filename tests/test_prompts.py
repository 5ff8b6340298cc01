"""Chat templates come from outside: they render what they are given, and reach nothing else."""

from __future__ import annotations

import pytest

from appliance.errors import InvalidInput
from appliance.prompts import TEMPLATE_LIMIT_BYTES, ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Ways out of a template engine: attribute walks, filters, format strings, globals, mutation, loading.
ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'].__mro__ }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ ''|attr('__cl' ~ 'ass__') }}{{ (''|attr('__cl' ~ 'ass__')).__base__ }}",
    "{{ [].append.__globals__ }}{{ [].append.__globals__['os'] }}",
    "{{ messages.__class__.__base__ }}",
    "{{ (messages|map(attribute='__class__')|first).mro() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
    "{{ namespace.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ raise_exception.__globals__['datetime'] }}",
    "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__.json }}",
    "{{ raise_exception.__code__ }}{{ raise_exception.__code__.co_code }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.eval_ctx.environment.from_string('x') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{{ ('%s' | format)('x').__class__ }}",
    "{{ ''.format.__self__.__class__.__mro__ }}{{ ''.format.__self__ }}",
    "{{ ('{a.__class__.__mro__}'|attr('format'))(a='') }}",
    "{% set x = ''.join.__self__.__class__ %}{{ x.mro() }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update({'content': 'changed'}) }}",
    "{{ messages[0].pop('content') }}",
    "{{ messages[0].__setitem__('content', 'x') }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}{{ x }}",
    "{% extends '/etc/passwd' %}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    "{{ ().__class__.__bases__[0].__subclasses__()[40]('/etc/passwd').read() }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ config.items() }}",
    "{{ request.application.__globals__ }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ __import__('os').system('id') }}",
    "{{ eval('1') }}",
    "{{ (1).__class__.__base__ }}",
    "{{ raise_exception('no') }}",
    # Resources and faults of arithmetic.
    "{{ range(10000000000) | list }}",
    "{{ 1 / 0 }}",
    "{{ 1 // 0 }}",
    "{{ 2.0 ** 100000 }}",
    "{{ '1' | int(base=99, default=none).x }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ [1, 'a'] | sort }}",
    "{{ messages | sum }}",
    "{{ none.x.y }}",
    "{{ '%d' % 'x' }}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_attack_is_refused_and_changes_nothing(source):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(InvalidInput) as caught:
        ChatTemplate(source).render(messages, add_generation_prompt=False)
    assert caught.value.code in ("template_refused", "invalid_template")
    assert messages == [{"role": "user", "content": "hi"}]


def test_attacks_are_many():
    assert len(set(ATTACKS)) == len(ATTACKS) == 50


@pytest.mark.parametrize("name", ["os", "sys", "open", "eval", "settings", "environ", "loader"])
def test_nothing_of_the_process_is_in_sight(name):
    source = "{{ NAME is defined }}".replace("NAME", name)
    assert ChatTemplate(source).render(MESSAGES, add_generation_prompt=False) == "False"


@pytest.mark.parametrize(
    "source",
    ["{{ messages", "{% for %}", "{% nonsense %}", "{{ " + "(" * 5000, "{{ x | nofilter }}"],
)
def test_template_that_does_not_compile_is_told(source):
    with pytest.raises(InvalidInput) as caught:
        ChatTemplate(source)
    assert caught.value.code == "invalid_template"


def test_template_size_is_limited_in_bytes():
    ChatTemplate("x" * TEMPLATE_LIMIT_BYTES)
    with pytest.raises(InvalidInput):
        ChatTemplate("é" * (TEMPLATE_LIMIT_BYTES // 2 + 1))


def test_conversation_is_rendered_as_the_template_says():
    template = ChatTemplate(CHATML)
    assert template.render(MESSAGES, add_generation_prompt=True) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not template.render(MESSAGES, add_generation_prompt=False).endswith("assistant\n")


def test_special_tokens_and_hugging_face_globals_are_there():
    template = ChatTemplate(
        "{{ bos_token }}{{ messages | tojson }}{% for m in messages %}{% break %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ eos_token }}",
        bos_token="<s>",
        eos_token="</s>",
    )
    content = [{"role": "user", "content": "é<&>'"}]
    text = template.render(content, add_generation_prompt=False)
    assert text == '<s>[{"role": "user", "content": "é<&>\'"}]4</s>'


def test_template_in_a_message_stays_text():
    messages = [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}]
    assert "{{ 7 * 7 }}{% raw %}" in ChatTemplate(CHATML).render(
        messages, add_generation_prompt=False
    )


@pytest.mark.parametrize(
    "bomb",
    ["'x' * 4000000000", "[1] * 4000000000", "4000000000 * 'x'", "9 ** 9 ** 9", "'x' * -9999999"],
)
def test_template_cannot_fill_the_memory(bomb):
    template = ChatTemplate("{{ (" + bomb + ") }}")
    with pytest.raises(InvalidInput) as caught:
        template.render([], add_generation_prompt=True)
    assert caught.value.code == "template_refused"


def render(source: str) -> str:
    return ChatTemplate(source).render(MESSAGES, add_generation_prompt=False)


@pytest.mark.parametrize("indent", ["100000000", "'" + " " * 65 + "'"])
def test_json_is_not_indented_out_of_bounds(indent: str) -> None:
    with pytest.raises(InvalidInput, match="indent may be no more than 64"):
        render("{{ messages | tojson(indent=" + indent + ") }}")
    assert render("{{ messages | tojson(indent=2) }}").startswith('[\n  {\n    "role"')


def test_text_out_of_bounds_never_reaches_a_tokenizer() -> None:
    with pytest.raises(InvalidInput, match="at most 16777216 characters") as refused:
        render("{{ 'a' | center(16777217) }}")
    assert refused.value.code == "template_refused"
    assert len(render("{{ 'a' | center(16777216) }}")) == 1 << 24


def test_template_may_multiply():
    assert (
        ChatTemplate("{{ '-' * 3 }}{{ 6 * 7 }}").render([], add_generation_prompt=True) == "---42"
    )
