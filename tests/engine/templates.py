"""Small chat templates, built as those of real families are: how they tell tools and write calls."""

from __future__ import annotations

from appliance.engine.tools import Function, Tools

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Hermes' format, several calls, results in a user's turn; with THINKS for the thoughts of the last turns.
_HERMES = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' }}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' }}
    {%- else %}
        {{- '<|im_start|>' + m.role }}
        {%- if THINKS %}{{ '\\n<think>\\n\\n</think>\\n' }}{% endif %}
        {%- if m.content %}{{ '\\n' + m.content }}{% endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\nOPENS' }}{% endif %}"""
HERMES = _HERMES.replace("THINKS", "false").replace("OPENS", "")
THOUGHTFUL = _HERMES.replace("THINKS", "m.role == 'assistant' and loop.last").replace("OPENS", "")
OPENS_THOUGHTS = _HERMES.replace("THINKS", "false").replace("OPENS", "<think>\\n")

# One call a turn, nothing before it, and no text for a content.
LLAMA = """\
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|start|>ipython<|end|>\\n\\n' + m.content | tojson + '<|eot|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('single tool-calls only') }}{% endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}<|eot|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|end|>\\n\\n' }}
        {%- if tools is not none and loop.first %}
            {%- for tool in tools %}{{ tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}
        {%- endif %}
        {{- m.content | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"""

# One list for all calls, behind a control token; ids of nine characters; tools beside the last question.
MISTRAL = """\
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools and m == users[-1] %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
        {{- '[INST] ' + m.content + '[/INST]' }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id + '"}' }}
    {%- elif m.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ', ' if not loop.last else ']</s>' }}
        {%- endfor %}
    {%- else %}
        {{- ' ' + m.content + '</s>' }}
    {%- endif %}
{%- endfor %}"""

# Arguments as text, and a word that is no JSON around them; a turn with calls has no content at all.
FENCED = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}<A>
        {%- for call in m.tool_calls or [] %}
            {{- ('<calls>' if loop.first else '\\n') + '<call>' + call.type + '<sep>' + call.function.name }}
            {{- '\\n```json\\n' + call.function.arguments + '\\n```</call>' }}
            {{- '</calls>' if loop.last }}
        {%- endfor %}
        {%- if m.content is not none %}{{ m.content }}{% endif %}</s>
    {%- else %}<U>{{ m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<A>{% endif %}"""

# What is no JSON: parameters in tags of their own.
TAGGED = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role + '\\n' + (m.content or '') }}
    {%- for call in m.tool_calls or [] %}<function={{ call.function.name }}>
        {%- for key, value in call.function.arguments.items() %}<{{ key }}>{{ value }}</{{ key }}>{% endfor %}
    </function>{% endfor %}<|im_end|>
{%- endfor %}"""

ENDS = ["<|im_end|>", "<|eot|>", "</s>"]


def tools(*names: str, **changes: object) -> Tools:
    """Functions whose arguments are {"a": true} or {"a": false}."""
    functions = [Function(name=name, description="does", parameters="{}") for name in names]
    rules = "\n".join(
        f'arguments{number} ::= "{{\\"a\\": " ("true" | "false") "}}"'
        for number in range(len(names))
    )
    return Tools(functions=functions, grammar=rules, **changes)  # type: ignore[arg-type]
