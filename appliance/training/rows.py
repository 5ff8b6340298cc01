"""From lines of JSON to token ids and labels.

Only answers carry loss, each with the token that ends its turn; everything else is labelled -100. No row
is ever dropped or cut: a file with a row that cannot be trained on as it is gets refused.

Knows nothing of models; of a tokenizer only that it gives character offsets.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from appliance.control_text import ControlText, Piece
from appliance.errors import UNDECODABLE, InvalidInput
from appliance.prompts import ChatTemplate

IGNORED_LABEL = -100
LISTED_LINES = 20
SHOWN_CHARACTERS = 2000


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn. `weight` 0 keeps an assistant's answer as context without training on it."""

    role: str
    content: str
    name: str | None = None
    weight: Literal[0, 1] | None = None


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a training or validation file."""

    messages: list[Message]


class Example(NamedTuple):
    """A tokenized row; `labels` has the length of `input_ids`.

    32-bit integers: in lists of Python's own a token takes ten times as much memory.
    """

    line: int
    input_ids: array[int]
    labels: array[int]


class _Tokens(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]


class Conversations:
    """Tokenizes conversations with a model's own template and tokenizer.

    `end_of_turn_ids` collects the ids that have ended an answer so far.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = _template_of(tokenizer)
        self._special_ids = {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        } | set(tokenizer.all_special_ids)
        self._control = ControlText(tokenizer.convert_ids_to_tokens(sorted(self._special_ids)))
        self.end_of_turn_ids: set[int] = set()

    def tokenize(self, line: int, messages: Sequence[Message]) -> Example:
        """Raises InvalidInput if the template does not let the answers be told from the rest."""
        messages = [self._hidden(message) for message in messages]
        text = self._render(messages, add_generation_prompt=False)
        tokens = self._tokenize(text)
        labels = array("i", [IGNORED_LABEL]) * len(tokens.ids)
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.weight != 0:
                for position in self._answer(line, messages, index, text, tokens):
                    labels[position] = tokens.ids[position]
        return Example(line, array("i", tokens.ids), labels)

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The rendered conversation, in the parts that are tokenized each by itself."""
        hidden = [self._hidden(message) for message in messages]
        return list(self._control.pieces(self._render(hidden, add_generation_prompt=False)))

    def _answer(
        self, line: int, messages: Sequence[Message], index: int, text: str, tokens: _Tokens
    ) -> list[int]:
        """Positions of the tokens of answer `index`, its end-of-turn token being the last."""
        before = self._render(messages[:index], add_generation_prompt=True)
        after = self._render(messages[: index + 1], add_generation_prompt=False)
        if not (after.startswith(before) and text.startswith(after)):
            raise _template_error(
                line, index, "each answer should continue the rendered text before it", text
            )
        content_end = _end_of_content(after, messages[index].content, len(before))
        end = self._end_of_turn(tokens, content_end, len(after))
        if end is None:
            raise _template_error(
                line, index, "a special token should end each answer, but none does", text
            )
        self.end_of_turn_ids.add(tokens.ids[end])
        first = next(i for i, (start, _) in enumerate(tokens.offsets) if start >= len(before))
        return list(range(first, end + 1))

    def _end_of_turn(self, tokens: _Tokens, start: int, stop: int) -> int | None:
        for position, (token_start, token_stop) in enumerate(tokens.offsets):
            inside = token_start >= start and token_stop <= stop
            if inside and tokens.ids[position] in self._special_ids:
                return position
        return None

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self._template.render(
            [_plain(message) for message in messages], add_generation_prompt=add_generation_prompt
        )

    def _hidden(self, message: Message) -> Message:
        name = message.name if message.name is None else self._control.hide(message.name)
        return msgspec.structs.replace(
            message, content=self._control.hide(message.content), name=name
        )

    def _tokenize(self, text: str) -> _Tokens:
        tokens = _Tokens([], [])
        for piece in self._control.pieces(text):
            # The template has written all special tokens already.
            encoded = self._tokenizer(
                piece.text,
                add_special_tokens=False,
                split_special_tokens=piece.is_plain,
                return_offsets_mapping=True,
            )
            tokens.ids.extend(encoded["input_ids"])
            # A mark has another length than what it stands for.
            tokens.offsets.extend(
                (piece.start, piece.stop)
                if piece.is_plain
                else (piece.start + start, piece.start + stop)
                for start, stop in encoded["offset_mapping"]
            )
        return tokens


def read_examples(
    path: Path, conversations: Conversations, *, max_length: int, alive: Callable[[], None]
) -> list[Example]:
    """Tokenize every row of a JSONL file; raises InvalidInput that names the lines at fault.

    `alive` is called once for each row.
    """
    examples = []
    for line, row in _read_rows(path):
        examples.append(conversations.tokenize(line, row.messages))
        alive()
    if not examples:
        raise InvalidInput("no_rows", f"{path.name} should hold at least one row; it holds none")
    _refuse_too_long(path, examples, max_length)
    _refuse_untrained(path, examples)
    return examples


def read_pieces(
    path: Path, lines: Collection[int], conversations: Conversations
) -> Iterator[tuple[int, list[Piece]]]:
    """Those `lines` of a file that has been read before, rendered, in parts."""
    for line, row in _read_rows(path):
        if line in lines:
            yield line, conversations.pieces(row.messages)


def end_of_turn_id(conversations: Conversations) -> int:
    """The one id that ended every answer; raises InvalidInput if answers ended differently."""
    ids = sorted(conversations.end_of_turn_ids)
    if len(ids) != 1:
        raise InvalidInput(
            "ambiguous_end_of_turn",
            f"one token should end every answer; the model's chat template ends them with ids {ids}",
            next_step="choose a base model whose chat template ends all answers alike",
        )
    return ids[0]


def _read_rows(path: Path) -> list[tuple[int, Row]]:
    decoder = msgspec.json.Decoder(Row)
    rows, faults = [], []
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                rows.append((line, decoder.decode(raw)))
            except UNDECODABLE as exc:
                faults.append(f"line {line} ({exc})")
    if faults:
        raise InvalidInput(
            "invalid_rows",
            f'every row of {path.name} should be {{"messages": [...]}}, but: {_listed(faults)}',
            next_step="correct those rows",
        )
    return rows


def _refuse_too_long(path: Path, examples: Iterable[Example], max_length: int) -> None:
    faults = [
        f"line {example.line} ({len(example.input_ids)})"
        for example in examples
        if len(example.input_ids) > max_length
    ]
    if faults:
        raise InvalidInput(
            "rows_too_long",
            f"a row may have {max_length} tokens; these of {path.name} have more: {_listed(faults)}",
            param="max_length",
            next_step="shorten or split those rows, or raise max_length",
        )


def _refuse_untrained(path: Path, examples: Iterable[Example]) -> None:
    faults = [
        f"line {example.line}"
        for example in examples
        if all(label == IGNORED_LABEL for label in example.labels)
    ]
    if faults:
        raise InvalidInput(
            "nothing_to_train",
            "every row should hold an assistant message with weight 1; "
            f"these of {path.name} hold none: {_listed(faults)}",
            next_step="add an answer to those rows, or leave them out",
        )


def _plain(message: Message) -> dict[str, str]:
    plain = {"role": message.role, "content": message.content}
    return plain if message.name is None else {**plain, "name": message.name}


def _template_of(tokenizer: Any) -> ChatTemplate:
    source = tokenizer.chat_template
    if not isinstance(source, str):
        raise InvalidInput(
            "no_chat_template",
            f"the base model should have one chat template; it has {type(source).__name__}",
            next_step="import the instruct variant of the model",
        )
    return ChatTemplate.of_tokenizer(source, tokenizer)


def _end_of_content(rendered: str, content: str, start: int) -> int:
    # Templates may trim the content or rewrite it. Where it is rewritten, the first special token after
    # the opening is what ends the turn.
    trimmed = content.strip()
    found = rendered.find(trimmed, start)
    return start if found < 0 else found + len(trimmed)


def _template_error(line: int, index: int, expected: str, text: str) -> InvalidInput:
    return InvalidInput(
        "template_hides_answers",
        f"in the model's chat template {expected}; line {line}, message {index + 1}, renders as: "
        f"{text[:SHOWN_CHARACTERS]!r}",
        next_step="leave only the last answer of such rows to be trained, or choose another base model",
    )


def _listed(faults: Sequence[str]) -> str:
    shown = ", ".join(faults[:LISTED_LINES])
    more = len(faults) - LISTED_LINES
    return f"{shown} and {more} more" if more > 0 else shown
