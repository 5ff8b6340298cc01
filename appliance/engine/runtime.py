"""One GGUF model in llama.cpp: its vocabulary, its chat template, its memory of many sequences of tokens.

Every call but `tokenize` and `piece` belongs to one thread. Never reads a state or slot file: llama.cpp
trusts them blindly. Knows nothing of requests.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from appliance.control_text import ControlText
from appliance.engine.adapters import Adapters
from appliance.engine.protocol import Message
from appliance.errors import ChildFailed, InvalidInput
from appliance.prompts import ChatTemplate

# Most tokens of one decode call; between two calls a request can be cancelled. On a CPU 512 were hardly
# faster (measured) and make a cancellation wait twice as long.
N_BATCH = 256
# Sequences beside those of running answers, whose beginnings later prompts can use.
IDLE_SEQUENCES = 16
# llama.cpp's tokenizer counts in 32 bits and has overflowed (GHSA-7rxv-5jhh-j6xx).
MAX_PROMPT_BYTES = 8 << 20
# ggml.h; llama-cpp-python does not name it.
GGML_LOG_LEVEL_ERROR = 4
CHAT_TEMPLATE_KEY = b"tokenizer.chat_template"
# The template has written its special tokens itself; adding more would double the first.
ADD_SPECIAL = False
# llama.h, llama_decode: no room in memory, which is as it was before.
NO_CELLS = 1


class NoCells(ChildFailed):
    """The pool has too few free cells for a decode call; nothing was decoded."""


class Part(NamedTuple):
    """Some tokens of a sequence that follow its first `position` ones."""

    tokens: Sequence[int]
    position: int
    sequence: int
    wants_scores: bool
    """Whether the last of them gets a row of scores."""


class Runtime:
    """A loaded model with one context, whose `n_ctx` cells are shared by all sequences."""

    def __init__(
        self,
        gguf: Path,
        *,
        n_ctx: int,
        threads: int,
        slots: int,
        adapter_budget_bytes: int = 0,
        on_progress: Callable[[float], None],
    ) -> None:
        """Load the model; raises ChildFailed if llama.cpp refuses it or it cannot chat."""
        errors = _keep_log_quiet()
        llama_cpp.llama_backend_init()
        self._model = _load_model(gguf, on_progress, errors)
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        # The limit that is enforced: llama.cpp rounds its own up to a multiple of 256.
        self.n_ctx = min(n_ctx, self.context_length)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.description = _description(self._model)
        control = list(self._control_tokens())
        self._control = ControlText(map(self._token_text, control))
        silent = [token for token in control if not self.ends_answer(token)]
        self.silent_tokens: npt.NDArray[np.intp] = np.array(silent, dtype=np.intp)
        """Control tokens that end nothing: in an answer they are no text."""
        self._template = ChatTemplate(
            _chat_template(self._model, gguf),
            bos_token=self._token_text(llama_cpp.llama_vocab_bos(self.vocab)),
            eos_token=self._token_text(llama_cpp.llama_vocab_eos(self.vocab)),
        )
        # A recurrent state holds no single tokens, and has its memory for each sequence.
        self.copies_parts = not (
            llama_cpp.llama_model_is_recurrent(self._model)
            or llama_cpp.llama_model_is_hybrid(self._model)
        )
        self.n_sequences = slots + (IDLE_SEQUENCES if self.copies_parts else 0)
        self.context = _make_context(self._model, self.n_ctx, threads, self.n_sequences, errors)
        self.adapters = Adapters(self._model, self.context, adapter_budget_bytes)
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)
        self._pieces: dict[int, bytes] = {}

    # --- text and tokens ---

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation up to where the answer begins; raises InvalidInput."""
        turns = [
            {"role": turn.role, "content": self._control.hide(turn.content)} for turn in messages
        ]
        rendered = self._template.render(turns, add_generation_prompt=True)
        pieces = self._control.pieces(rendered)
        return [token for piece in pieces for token in self.tokenize(piece.text, piece.is_plain)]

    def tokenize(self, text: str, is_plain: bool = False) -> list[int]:
        """Tokens of a rendered template, with the control tokens that it wrote; a plain text has none."""
        data = text.encode()
        if len(data) > MAX_PROMPT_BYTES:
            raise InvalidInput(
                "prompt_too_large",
                f"a prompt may have {MAX_PROMPT_BYTES} bytes; this one has {len(data)}",
                param="messages",
                next_step="send a shorter conversation",
            )
        # No token is shorter than a byte, but some vocabularies put a space in front.
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self.vocab, data, len(data), tokens, room, ADD_SPECIAL, not is_plain
        )
        if count < 0:
            raise InvalidInput(
                "untokenizable_prompt",
                f"{len(data)} bytes should give at most {room} tokens; they give {-count}",
                param="messages",
            )
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token, which need not be whole characters; none for a control token."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token)
        return self._pieces[token]

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def ends_answer(self, token: int) -> bool:
        """Whether the model says by this token that it has finished."""
        return llama_cpp.llama_vocab_is_eog(self.vocab, token)

    def _control_tokens(self) -> Iterator[int]:
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        for token in range(self.n_vocab):
            if llama_cpp.llama_vocab_get_attr(self.vocab, token) & control:
                yield token

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        return llama_cpp.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace")

    # --- memory ---

    def decode(self, parts: Sequence[Part]) -> list[int | None]:
        """Run the parts, N_BATCH tokens at most; gives each one's row of scores, if it wants one.

        Raises NoCells with nothing done, or ChildFailed, after which the memory holds an unknown part.
        """
        batch, index = self._batch, 0
        rows: list[int | None] = []
        for part in parts:
            for position, token in enumerate(part.tokens, part.position):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = part.sequence
                batch.logits[index] = False
                index += 1
            batch.logits[index - 1] = part.wants_scores
            rows.append(index - 1 if part.wants_scores else None)
        batch.n_tokens = index
        status = llama_cpp.llama_decode(self.context, batch)
        if status == NO_CELLS:
            raise NoCells(
                "no_cells",
                f"{index} more tokens should find room in a context of {self.n_ctx}; there is none",
                next_step="send a shorter conversation",
            )
        if status != 0:
            raise ChildFailed(
                "decode_failed",
                f"llama.cpp should decode {index} tokens; it returned {status}",
                next_step="try again; see the engine's last lines in the log",
            )
        return rows

    def scores(self, row: int) -> npt.NDArray[np.float32]:
        """The logits of the last decode call for one of its rows, shape (n_vocab,); valid until the next."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence begin with the first tokens of another; they share the cells."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def forget(self, sequence: int) -> None:
        """Empty a sequence; cells that another one shares stay."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)


# The library keeps only the address of the callback: without a reference here it would be collected.
_log_callback: Any = None


def _keep_log_quiet() -> list[str]:
    """Let only errors through to stderr; the last of them is also kept in the returned list."""
    global _log_callback
    last: list[str] = []

    def log(level: int, text: bytes, _user_data: object) -> None:
        if level == GGML_LOG_LEVEL_ERROR:
            last[:] = [text.decode("utf-8", "replace").strip()]
            sys.stderr.write(last[0] + "\n")

    _log_callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
    return last


def _load_model(gguf: Path, on_progress: Callable[[float], None], errors: list[str]) -> Any:
    def progress(fraction: float, _user_data: object) -> bool:
        on_progress(fraction)
        return True

    params = llama_cpp.llama_model_default_params()
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    params.progress_callback = llama_cpp.llama_progress_callback(progress)
    if llama_cpp.llama_supports_gpu_offload():
        params.n_gpu_layers = -1  # all of them; not tried on a GPU yet
    model = llama_cpp.llama_model_load_from_file(os.fsencode(gguf), params)
    if not model:
        raise ChildFailed(
            "unloadable_model",
            f"llama.cpp should load {gguf.name}, but: {errors[0] if errors else 'no reason given'}",
            next_step="check that the file is a whole GGUF model",
        )
    if llama_cpp.llama_model_has_encoder(model) or not llama_cpp.llama_model_has_decoder(model):
        raise ChildFailed(
            "unsupported_model",
            f"{gguf.name} should be a decoder-only language model; it is {_description(model)}",
        )
    return model


def _make_context(model: Any, n_ctx: int, threads: int, n_sequences: int, errors: list[str]) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = params.n_ubatch = N_BATCH
    params.n_seq_max = n_sequences
    # One pool for all: a beginning can be shared, and one answer may have the whole context.
    params.kv_unified = True
    # A sliding window would let go of what a later prompt begins with.
    params.swa_full = True
    params.n_threads = params.n_threads_batch = threads
    # "auto" turns it on wherever the device can; off, batched decoding is half as fast on a CPU.
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.no_perf = True
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise ChildFailed(
            "no_context",
            f"llama.cpp should make a context of {n_ctx} tokens, but: "
            f"{errors[0] if errors else 'no reason given'}",
            next_step="lower n_ctx or free memory",
        )
    return context


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


def _description(model: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    llama_cpp.llama_model_desc(model, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
