"""Tokens with their scores, in the form in which llama.cpp's samplers take and change them."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt

# llama.h, llama_token_data.
_ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True)
assert _ENTRY.itemsize == ctypes.sizeof(llama_cpp.llama_token_data)


class Candidates:
    """Some tokens; `array` is what a sampler is applied to."""

    def __init__(self, ids: npt.ArrayLike, logits: npt.ArrayLike) -> None:
        logits = np.asarray(logits)
        # llama.cpp writes into it.
        self._entries = np.zeros(logits.size, dtype=_ENTRY)
        self._entries["id"] = ids
        self._entries["logit"] = logits
        data = self._entries.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        self.array = llama_cpp.llama_token_data_array(data, logits.size, -1, False)

    def best(self) -> int:
        """The token with the highest score; the first of equals."""
        return int(self._entries["id"][np.argmax(self._entries["logit"])])

    def selected(self) -> int:
        """The token that a chain of samplers has chosen."""
        return int(self.array.data[self.array.selected].id)

    def any_allowed(self) -> bool:
        """Whether a grammar, applied to them, has let any stand."""
        return bool(np.isfinite(self._entries["logit"]).any())
