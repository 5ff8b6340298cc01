"""The few calls into llama.cpp's library that a release needs: quantize, choose types, tokenize, decode.

Its log is passed on line by line, warnings and errors to stderr, so that long work shows life. Knows
nothing of Hugging Face's formats.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from appliance.errors import ChildFailed
from appliance.records import Quantization

FILE_TYPES: dict[Quantization, int] = {
    each: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{each}") for each in Quantization
}
# The largest part of a tensor that its quantizer holds at once.
_QUANTIZE_BUFFER_BYTES = 64 << 20
# A line of its dry run; the type in brackets, where it differs from the one before
# (src/llama-quant.cpp, llama_model_quantize_impl).
_PLANNED = re.compile(
    r"^\[ *\d+/ *\d+\] (?P<name>\S+) +- \[.*?\], type = +(?P<old>\S+), size = .*?(?:\((?P<new>\S+)\))?$",
    re.MULTILINE,
)
# Whoever began to listen last is told. Outside of all contexts nobody is; that callback is never freed.
_listeners = [llama_cpp.llama_log_callback(lambda level, text, data: None)]
# Scores of so many tokens at once have a buffer, as wide as the vocabulary.
_N_UBATCH = 64
_WARN, _ERROR = 3, 4  # enum ggml_log_level of ggml.h


@contextlib.contextmanager
def log_to(on_line: Callable[[], None]) -> Iterator[None]:
    """Call `on_line` at each piece of llama.cpp's log while the context lasts."""

    def listen(level: int, text: str) -> None:
        on_line()
        if level in (_WARN, _ERROR):
            sys.stderr.write(text)

    with _listening(listen):
        yield


@contextlib.contextmanager
def _listening(listen: Callable[[int, str], None]) -> Iterator[None]:
    callback = llama_cpp.llama_log_callback(
        lambda level, text, data: listen(level, text.decode("utf-8", "replace"))
    )
    _listeners.append(callback)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield
    finally:
        # The library must not keep a callback that Python is about to free.
        _listeners.pop()
        llama_cpp.llama_log_set(_listeners[-1], ctypes.c_void_p(0))


def quantize(source: Path, destination: Path, quantization: Quantization, *, threads: int) -> None:
    """Write `source` (a float GGUF) as `quantization`; raises ChildFailed if llama.cpp says no."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    _quantize(source, destination, quantization, params)


def tensor_types(source: Path, quantization: Quantization) -> dict[str, str]:
    """The type that llama.cpp would give each tensor of `source`, by ggml's names of types.

    `source` is a GGUF of any types: its tensors' names and shapes and the model's own facts decide. The
    library tells its choice only in the log of a dry run, which reads no weights and writes nothing.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.dry_run = True
    pieces: list[str] = []
    try:
        with _listening(lambda level, text: pieces.append(text)):
            _quantize(source, Path(os.devnull), quantization, params)
    except ChildFailed:
        sys.stderr.write("".join(pieces))
        raise
    lines = _PLANNED.finditer("".join(pieces))
    return {line["name"]: line["new"] or line["old"] for line in lines}


def _quantize(source: Path, destination: Path, quantization: Quantization, params: Any) -> None:
    params.ftype = FILE_TYPES[quantization]
    params.max_buf_size = _QUANTIZE_BUFFER_BYTES
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
    """A GGUF loaded on the CPU, with an adapter attached if there is one; use it as a context manager."""

    def __init__(self, path: Path, *, threads: int, adapter: Path | None = None) -> None:
        self._path = path
        self._threads = threads
        self._adapter_path = adapter
        self._adapter: Any = None

    def __enter__(self) -> Model:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # Copies of the weights in an order that is faster to multiply are not worth their memory here.
        params.use_extra_bufts = False
        self._model = llama_cpp.llama_model_load_from_file(str(self._path).encode(), params)
        if self._model is None:
            raise _unloadable(self._path)
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        if self._adapter_path is not None:
            name = str(self._adapter_path).encode()
            # Freed with the model.
            self._adapter = llama_cpp.llama_adapter_lora_init(self._model, name)
            if not self._adapter:
                llama_cpp.llama_model_free(self._model)
                raise _unloadable(self._adapter_path)
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: str, *, is_plain: bool = False) -> list[int]:
        """Token ids of rendered text; control tokens are recognised unless it is plain, none is added."""
        data = text.encode()
        capacity = len(data) + 16
        tokens = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(
            self.vocab, data, len(data), tokens, capacity, False, not is_plain
        )
        return tokens[:count]

    def ends_turn(self, token_id: int) -> bool:
        """Whether generation ends with this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token_id))

    def logits(self, tokens: Sequence[int], count: int) -> np.ndarray:
        """Scores [count, n_vocab] behind each of the last `count` of `tokens`, from one pass over all."""
        with self._context(len(tokens)) as context:
            return self._decode(context, tokens, count)

    def greedy(
        self, prompt: Sequence[int], count: int, *, stop: bool = False
    ) -> tuple[list[int], np.ndarray]:
        """At most `count` most likely tokens after `prompt`, and the logits [tokens, n_vocab] they came from.

        With `stop`, a token that ends the turn is the last.
        """
        tokens, rows = list(prompt), []
        answer: list[int] = []
        with self._context(len(prompt) + count) as context:
            while len(answer) < count and not (stop and answer and self.ends_turn(answer[-1])):
                rows.append(self._decode(context, tokens, 1)[0])
                answer.append(int(rows[-1].argmax()))
                tokens = answer[-1:]
        return answer, np.stack(rows)

    @contextlib.contextmanager
    def _context(self, n_ctx: int) -> Iterator[Any]:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(n_ctx, _N_UBATCH)
        params.n_threads = params.n_threads_batch = self._threads
        context = llama_cpp.llama_init_from_model(self._model, params)
        if context is None:
            raise self._failed(f"llama.cpp should make a context of {n_ctx} tokens; it does not")
        try:
            if self._adapter is not None:
                self._attach(context)
            yield context
        finally:
            llama_cpp.llama_free(context)

    def _attach(self, context: Any) -> None:
        # As strong as it was trained: its file holds the scale.
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        scales = (ctypes.c_float * 1)(1.0)
        status = llama_cpp.llama_set_adapters_lora(context, adapters, 1, scales)
        if status != 0:
            raise self._failed(f"llama.cpp should attach an adapter to it; it returned {status}")

    def _decode(self, context: Any, tokens: Sequence[int], count: int) -> np.ndarray:
        """Scores behind the last `count` of `tokens`, which go on from what the context holds."""
        begin = llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(context), 0) + 1
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token_id in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token_id, begin + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= len(tokens) - count
            status = llama_cpp.llama_decode(context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise self._failed(f"llama.cpp should decode with it; it ended with status {status}")
        n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        rows = (llama_cpp.llama_get_logits_ith(context, i) for i in range(-count, 0))
        return np.stack([np.ctypeslib.as_array(row, shape=(n_vocab,)).copy() for row in rows])

    def _failed(self, reason: str) -> ChildFailed:
        return ChildFailed("release_check_failed", f"{self._path.name}: {reason}")


def _unloadable(path: Path) -> ChildFailed:
    return ChildFailed(
        "release_check_failed",
        f"llama.cpp should load {path.name}; it refuses it",
        next_step="see the job's log",
    )
