"""From prompts to tokens and back: a model's vocabulary and its chat template.

`prompt`, `tokenize` and `piece` may be called from any thread. Knows nothing of contexts or of answers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from appliance.control_text import ControlText
from appliance.engine.conversation import Conversations
from appliance.engine.protocol import Prompt, Raw
from appliance.engine.renderer import Renderer
from appliance.engine.tools import Tools
from appliance.errors import ChildFailed, InvalidInput

# llama.cpp's tokenizer counts in 32 bits and has overflowed (GHSA-7rxv-5jhh-j6xx).
MAX_PROMPT_BYTES = 8 << 20
CHAT_TEMPLATE_KEY = b"tokenizer.chat_template"
# A template has written its special tokens itself; adding more would double the first. A raw text gets its
# BOS here, and no EOS even where the metadata asks for one: the model is to go on from it.
ADD_SPECIAL = False
# llama.cpp looks for control tokens in a time that grows with the square of their number: 60,000 of them took
# minutes. Where a text is cut before one of them, the tokens are the same.
MOST_CONTROL_TOKENS = 64
STRIPS = llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP


class Vocabulary:
    """The tokens of a loaded model, and how they make up a prompt."""

    def __init__(self, model: Any, gguf: Path) -> None:
        """Raises ChildFailed for a model that cannot chat, InvalidInput if its template is none."""
        self.handle = llama_cpp.llama_model_get_vocab(model)
        """llama.cpp's own."""
        self.n_tokens: int = llama_cpp.llama_vocab_n_tokens(self.handle)
        control = list(self._control_tokens())
        self._control = ControlText(map(self._token_text, control))
        self._strips = any(self._attributes(token) & STRIPS for token in control)
        silent = [token for token in control if not self.ends_answer(token)]
        self.silent_tokens: npt.NDArray[np.intp] = np.array(silent, dtype=np.intp)
        """Control tokens that end nothing: in an answer they are no text."""
        template = Renderer(
            _chat_template(model, gguf),
            bos_token=self._token_text(llama_cpp.llama_vocab_bos(self.handle)),
            eos_token=self._token_text(llama_cpp.llama_vocab_eos(self.handle)),
        )
        ends = [self._token_text(token) for token in control if self.ends_answer(token)]
        self.close = template.close
        """Ends the process in which the template runs; the next conversation would start another."""
        self._conversations = Conversations(template, self._control, ends)
        self.call_format = self._conversations.calls
        self.call_tokens = self._named_in(self.call_format.texts(), silent)
        """Control tokens that are part of how a call is written, with their names."""
        self._pieces: dict[int, bytes] = {}

    def prompt(self, prompt: Prompt, tools: Tools | None = None) -> list[int]:
        """The tokens up to where the answer begins, none for an empty prompt; raises InvalidInput."""
        if not isinstance(prompt, Raw):
            pieces = self._control.pieces(self._conversations.render(prompt, tools))
            return [
                token
                for piece in pieces
                for part in ([piece.text] if piece.is_plain else self._parts(piece.text))
                for token in self.tokenize(part, piece.is_plain)
            ]
        if isinstance(prompt.content, str):
            # Whoever writes a raw prompt writes the model's control tokens, too: there is no turn to forge.
            parts = self._parts(prompt.content)
            return self._bos() + [
                token for part in parts for token in self.tokenize(part, param="prompt")
            ]
        self._check_known(prompt.content)
        return list(prompt.content)

    def _parts(self, text: str) -> Iterable[str]:
        # One that takes the white space before it must see that.
        return [text] if self._strips else self._control.parts(text, MOST_CONTROL_TOKENS)

    def _bos(self) -> list[int]:
        """What the model's metadata puts before every text: one token or none."""
        if not llama_cpp.llama_vocab_get_add_bos(self.handle):
            return []
        return [llama_cpp.llama_vocab_bos(self.handle)]

    def _check_known(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.n_tokens:
                raise InvalidInput(
                    "invalid_value",
                    f"prompt should be of tokens from 0 to {self.n_tokens - 1}; found {token}",
                    param="prompt",
                )

    def tokenize(self, text: str, is_plain: bool = False, param: str = "messages") -> list[int]:
        """Tokens of a text, with the control tokens that it names unless it is plain; no BOS is added.

        `param` is the request's field that an error names.
        """
        data = text.encode()
        if len(data) > MAX_PROMPT_BYTES:
            raise InvalidInput(
                "prompt_too_large",
                f"a prompt may have {MAX_PROMPT_BYTES} bytes; this one has {len(data)}",
                param=param,
                next_step="send a shorter prompt",
            )
        # No token is shorter than a byte, but some vocabularies put a space in front.
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self.handle, data, len(data), tokens, room, ADD_SPECIAL, not is_plain
        )
        if count < 0:
            raise InvalidInput(
                "untokenizable_prompt",
                f"{len(data)} bytes should give at most {room} tokens; they give {-count}",
                param=param,
            )
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token, which need not be whole characters; none for a control token."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token)
        return self._pieces[token]

    def call_piece(self, token: int) -> bytes:
        """The bytes of a token in an answer that may call functions."""
        return self.call_tokens.get(token) or self.piece(token)

    def _named_in(self, texts: Sequence[str], tokens: Sequence[int]) -> dict[int, bytes]:
        names = {token: self._token_text(token) for token in tokens}
        return {
            token: name.encode()
            for token, name in names.items()
            if name and any(name in text for text in texts)
        }

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self.handle, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def ends_answer(self, token: int) -> bool:
        """Whether the model says by this token that it has finished."""
        return llama_cpp.llama_vocab_is_eog(self.handle, token)

    def _control_tokens(self) -> Iterator[int]:
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        for token in range(self.n_tokens):
            if self._attributes(token) & control:
                yield token

    def _attributes(self, token: int) -> int:
        return int(llama_cpp.llama_vocab_get_attr(self.handle, token))

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        return llama_cpp.llama_vocab_get_text(self.handle, token).decode("utf-8", "replace")


def _chat_template(model: Any, gguf: Path) -> str:
    # The metadata itself: llama_model_chat_template() makes up a name for some models without one.
    length = llama_cpp.llama_model_meta_val_str(model, CHAT_TEMPLATE_KEY, None, 0)
    if length <= 0:
        raise ChildFailed(
            "no_chat_template",
            f"{gguf.name} should carry {CHAT_TEMPLATE_KEY.decode()} in its metadata; it has none",
            next_step="import an instruct model, or one whose GGUF carries its chat template",
        )
    buffer = ctypes.create_string_buffer(length + 1)
    llama_cpp.llama_model_meta_val_str(model, CHAT_TEMPLATE_KEY, buffer, length + 1)
    return buffer.value.decode()
