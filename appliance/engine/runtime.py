"""One GGUF model in llama.cpp, and its memory of many sequences of tokens.

Every call belongs to one thread. Never reads a state or slot file: llama.cpp trusts them blindly, and only
what this process has saved itself is ever restored. Knows nothing of requests.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from appliance.engine.adapters import Adapters
from appliance.engine.vocabulary import Vocabulary
from appliance.errors import ChildFailed

# Most tokens of one decode call; between two calls a request can be cancelled. On a CPU 512 were hardly
# faster (measured) and make a cancellation wait twice as long.
N_BATCH = 256
# Sequences beside those of running answers, whose beginnings later prompts can use.
IDLE_SEQUENCES = 16
# ggml.h; llama-cpp-python does not name it.
GGML_LOG_LEVEL_ERROR = 4
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
        self.context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        # The limit that is enforced: llama.cpp rounds its own up to a multiple of 256.
        self.n_ctx = min(n_ctx, self.context_length)
        self.vocabulary = Vocabulary(self._model, gguf)
        self.n_vocab = self.vocabulary.n_tokens
        # A recurrent state holds no single tokens, and has its memory for each sequence.
        self.copies_parts = not (
            llama_cpp.llama_model_is_recurrent(self._model)
            or llama_cpp.llama_model_is_hybrid(self._model)
        )
        # Of a sliding window only the cells in sight are saved, from which no part can be copied.
        self.saves = self.copies_parts and llama_cpp.llama_model_n_swa(self._model) == 0
        self.n_sequences = slots + (IDLE_SEQUENCES if self.copies_parts else 0)
        self.context = _make_context(self._model, self.n_ctx, threads, self.n_sequences, errors)
        self.adapters = Adapters(self._model, self.context, adapter_budget_bytes)
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)
        self._row = ctypes.c_float * self.n_vocab

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
                next_step="send a shorter prompt",
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
        # `np.ctypeslib.as_array` makes a type each time, which takes longer than to find the best score.
        scores = self._row.from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(memoryview(scores), np.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence begin with the first tokens of another; they share the cells."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def forget(self, sequence: int) -> None:
        """Empty a sequence; cells that another one shares stay."""
        self.cut(sequence, 0)

    def cut(self, sequence: int, length: int) -> None:
        """Let a sequence end after its first `length` tokens; cells that another one shares stay."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def save(self, sequence: int) -> npt.NDArray[np.uint8]:
        """A copy of all that a sequence holds, for `restore`."""
        size_bytes = llama_cpp.llama_state_seq_get_size(self.context, sequence)
        state = np.empty(size_bytes, np.uint8)
        written = llama_cpp.llama_state_seq_get_data(
            self.context, _bytes_of(state), size_bytes, sequence
        )
        if written != size_bytes:
            raise ChildFailed(
                "save_failed",
                f"llama.cpp should copy {size_bytes} bytes of a sequence; it copied {written}",
            )
        return state

    def restore(self, sequence: int, state: npt.NDArray[np.uint8]) -> bool:
        """Let a sequence hold what was saved; False, and it is empty, if there are too few free cells."""
        read = llama_cpp.llama_state_seq_set_data(
            self.context, _bytes_of(state), state.size, sequence
        )
        return bool(read)


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


def _bytes_of(state: npt.NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _description(model: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    llama_cpp.llama_model_desc(model, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
