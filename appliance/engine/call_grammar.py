"""The grammar of an answer's calls, in llama.cpp's GBNF: the model's own format around arguments by schema.

Knows nothing of llama.cpp's library.
"""

from __future__ import annotations

from appliance.engine.call_format import ID, ID_CHARACTERS, CallFormat
from appliance.engine.json_primitives import literal
from appliance.engine.tools import Tools

CALLS = "calls"
CALLS_OR_ANSWER = "calls-or-answer"
_ID = "call-id"


def calls_grammar(form: CallFormat, tools: Tools, said: str = "", lead: str = "") -> str:
    """Rules of which CALLS is what an answer may go on with.

    It has `said` the beginning of a call already; or, if it has not begun, `lead` comes before the call.
    """
    functions = tools.callable()
    opening, said = form.opening.lstrip(), said.lstrip()
    heads = {opening + name + form.middle: rule for name, rule in functions.items()}
    first = " | ".join(
        f"{_text(head[len(said) :])} {rule}"
        for head, rule in heads.items()
        if head.startswith(said)
    )
    rules = [tools.grammar, f"{_ID} ::= [a-zA-Z0-9]{{{ID_CHARACTERS}}}"]
    root = f"{_text(lead)} ({first})"
    if tools.is_parallel and form.between is not None:
        more = " | ".join(f"{_text(name + form.middle)} {rule}" for name, rule in functions.items())
        rules.append(f"next-call ::= {_text(form.between)} ({more})")
        root += f" next-call* {_text(form.closing)}"
    return "\n".join([*rules, f"{CALLS} ::= {root}"])


def _text(text: str) -> str:
    """What has to stand there; at an id, any other will do."""
    return f" {_ID} ".join(literal(each) for each in text.split(ID))
