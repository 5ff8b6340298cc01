"""The few calls into llama.cpp's library that a release needs: quantize, tokenize, decode.

Its log is passed on line by line, warnings and errors to stderr, so that long work shows life. Knows
nothing of Hugging Face's formats.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from appliance.errors import ChildFailed
from appliance.records import Quantization

FILE_TYPES = {
    Quantization.Q4_K_M: llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    Quantization.Q8_0: llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
# Outside `log_to` nobody listens. A module constant, so that the callback is never freed.
_SILENCE = llama_cpp.llama_log_callback(lambda level, text, data: None)
_N_CTX = 512
_WARN, _ERROR = 3, 4  # enum ggml_log_level of ggml.h


@contextlib.contextmanager
def log_to(on_line: Callable[[], None]) -> Iterator[None]:
    """Call `on_line` at each piece of llama.cpp's log while the context lasts."""

    def listen(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        on_line()
        if level in (_WARN, _ERROR):
            sys.stderr.write(text.decode("utf-8", "replace"))

    callback = llama_cpp.llama_log_callback(listen)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield
    finally:
        # The library must not keep a callback that Python is about to free.
        llama_cpp.llama_log_set(_SILENCE, ctypes.c_void_p(0))


def quantize(source: Path, destination: Path, quantization: Quantization, *, threads: int) -> None:
    """Write `source` (a float GGUF) as `quantization`; raises ChildFailed if llama.cpp says no."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = FILE_TYPES[quantization]
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(destination).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise ChildFailed(
            "quantization_failed",
            f"llama.cpp should quantize to {quantization}; it ended with status {status}",
            next_step="see the job's log",
        )


class Model:
    """A GGUF loaded on the CPU; use it as a context manager."""

    def __init__(self, path: Path, *, threads: int) -> None:
        self._path = path
        self._threads = threads

    def __enter__(self) -> Model:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(self._path).encode(), params)
        if self._model is None:
            raise ChildFailed(
                "release_check_failed",
                f"llama.cpp should load {self._path.name}; it refuses it",
                next_step="see the job's log",
            )
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text: special tokens are recognised, none is added."""
        data = text.encode()
        capacity = len(data) + 16
        tokens = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, capacity, False, True)
        return tokens[:count]

    def greedy(self, prompt: Sequence[int], count: int) -> tuple[list[int], Any]:
        """`count` most likely tokens after `prompt`, and the logits [count, n_vocab] they came from."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = _N_CTX
        params.n_threads = params.n_threads_batch = self._threads
        context = llama_cpp.llama_init_from_model(self._model, params)
        try:
            return self._decode(context, list(prompt), count)
        finally:
            llama_cpp.llama_free(context)

    def _decode(self, context: Any, tokens: list[int], count: int) -> tuple[list[int], Any]:
        n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        answer, rows = [], []
        for _ in range(count):
            array = (llama_cpp.llama_token * len(tokens))(*tokens)
            status = llama_cpp.llama_decode(
                context, llama_cpp.llama_batch_get_one(array, len(tokens))
            )
            if status != 0:
                raise ChildFailed(
                    "release_check_failed",
                    f"llama.cpp should decode with {self._path.name}; it ended with status {status}",
                )
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            rows.append(np.ctypeslib.as_array(logits, shape=(n_vocab,)).copy())
            answer.append(int(rows[-1].argmax()))
            tokens = answer[-1:]
        return answer, np.stack(rows)
