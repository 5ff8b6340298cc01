"""One GGUF model in llama.cpp: its vocabulary, its chat template, its memory of past tokens.

Every call but `tokenize` and `piece` belongs to one thread. Never reads a state or slot file: llama.cpp
trusts them blindly. Knows nothing of requests.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from appliance.engine.protocol import Message
from appliance.errors import ChildFailed, InvalidInput
from appliance.prompts import ChatTemplate

# Most tokens of one decode call; between two calls a request can be cancelled. On a CPU 512 were hardly
# faster (measured) and make a cancellation wait twice as long.
N_BATCH = 256
# llama.cpp's tokenizer counts in 32 bits and has overflowed (GHSA-7rxv-5jhh-j6xx).
MAX_PROMPT_BYTES = 8 << 20
# ggml.h; llama-cpp-python does not name it.
GGML_LOG_LEVEL_ERROR = 4
CHAT_TEMPLATE_KEY = b"tokenizer.chat_template"
SEQUENCE = 0
# The template has written its special tokens itself; adding more would double the first.
ADD_SPECIAL, PARSE_SPECIAL = False, True


class Runtime:
    """A loaded model with one context of one sequence."""

    def __init__(
        self, gguf: Path, *, n_ctx: int, threads: int, on_progress: Callable[[float], None]
    ) -> None:
        """Load the model; raises ChildFailed if llama.cpp refuses it or it cannot chat."""
        errors = _keep_log_quiet()
        llama_cpp.llama_backend_init()
        self._model = _load_model(gguf, on_progress, errors)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        # The limit that is enforced: llama.cpp rounds its own up to a multiple of 256.
        self.n_ctx = min(n_ctx, self.context_length)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.description = _description(self._model)
        self._template = ChatTemplate(
            _chat_template(self._model, gguf),
            bos_token=self._token_text(llama_cpp.llama_vocab_bos(self._vocab)),
            eos_token=self._token_text(llama_cpp.llama_vocab_eos(self._vocab)),
        )
        self.context = _make_context(self._model, self.n_ctx, threads, errors)
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)

    # --- text and tokens ---

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation up to where the answer begins; raises InvalidInput."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        return self.tokenize(self._template.render(turns, add_generation_prompt=True))

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a rendered template, whose own special tokens are all that it gets."""
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
            self._vocab, data, len(data), tokens, room, ADD_SPECIAL, PARSE_SPECIAL
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
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def ends_answer(self, token: int) -> bool:
        """Whether the model says by this token that it has finished."""
        return llama_cpp.llama_vocab_is_eog(self._vocab, token)

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        return llama_cpp.llama_vocab_get_text(self._vocab, token).decode()

    # --- memory ---

    def decode(self, tokens: Sequence[int], position: int) -> None:
        """Run at most N_BATCH tokens that follow the first `position` ones; the last gets logits.

        After ChildFailed the memory holds an unknown part of them.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = SEQUENCE
            batch.logits[index] = index == len(tokens) - 1
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise ChildFailed(
                "decode_failed",
                f"llama.cpp should decode {len(tokens)} tokens at {position}; it returned {status}",
                next_step="try again; see the engine's last lines in the log",
            )

    def forget_from(self, position: int) -> bool:
        """Remove what was decoded at `position` and later; False if this memory cannot do that."""
        # A sliding window that has moved on no longer holds what the tokens before `position` need,
        # and llama.cpp removes the rest without complaint.
        if llama_cpp.llama_memory_seq_pos_min(self._memory, SEQUENCE) > 0:
            return False
        return llama_cpp.llama_memory_seq_rm(self._memory, SEQUENCE, position, -1)

    def forget_all(self) -> None:
        """Empty the memory."""
        llama_cpp.llama_memory_clear(self._memory, True)


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


def _make_context(model: Any, n_ctx: int, threads: int, errors: list[str]) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = params.n_ubatch = N_BATCH
    params.n_seq_max = 1
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
