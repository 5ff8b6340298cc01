from __future__ import annotations

import pytest

from appliance.exports import modelfile
from appliance.prompts import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# The system's words stand in the first user's turn.
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST] {{ s if loop.first else '' }}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def written(source: str, **special: str) -> str:
    template = ChatTemplate(source, **special)
    return modelfile.modelfile("model-Q4_K_M.gguf", template, ["<|im_end|>"], "Apache-2.0")


def test_chatml() -> None:
    assert written(CHATML) == (
        "FROM ./model-Q4_K_M.gguf\n"
        'TEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'LICENSE "Apache-2.0"\n'
    )


def test_a_system_message_of_its_own_comes_where_none_is_given() -> None:
    text = written(DEFAULT_SYSTEM + CHATML)
    assert (
        'TEMPLATE """{{ if ne (index .Messages 0).Role "system" }}'
        "<|im_start|>system\nBe kind.<|im_end|>\n{{ end }}{{ range .Messages }}"
    ) in text


def test_a_beginning_that_the_reader_does_not_add_is_written_once() -> None:
    text = written(LLAMA3, bos_token="<|begin|>")
    assert '"system" }}<|begin|><|start_header_id|>' in text
    assert '{{ if ne (index .Messages 0).Role "system" }}<|begin|>{{ end }}' in text
    assert "<|begin|>" not in written(LLAMA3)


@pytest.mark.parametrize(
    "source",
    [
        MISTRAL,
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ raise_exception('no') if messages[0].role == 'system' else messages[0].content }}",
        CHATML.replace("<|im_start|>", "{{ '{{' }}"),
        CHATML.replace("<|im_start|>", '"""'),
        "{{ messages[-1].content }}",
        # Today's date would stand there for ever.
        "Today is {{ strftime_now('%Y-%m-%d') }}.\n" + CHATML,
    ],
)
def test_what_has_no_equal_is_said_and_not_guessed(source: str) -> None:
    text = written(source)
    assert "TEMPLATE" not in text
    assert "# The model's chat template has no equal" in text
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_words_from_outside_are_no_instructions() -> None:
    template = ChatTemplate(CHATML)
    text = modelfile.modelfile("m.gguf", template, ['a"\nFROM evil'], "x\nADAPTER ./evil")
    assert [line.split()[0] for line in text.splitlines() if line and line[0].isupper()] == [
        "FROM",
        "TEMPLATE",
        "PARAMETER",
        "LICENSE",
    ]
