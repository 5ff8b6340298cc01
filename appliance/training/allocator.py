"""Gives the training child tcmalloc in place of glibc's memory allocator, by starting the program anew.

PyTorch asks for aligned blocks, and in glibc's heap freed ones leave holes that the next does not fit: a
training of the starter model took 2.9 GB of which 1.8 were in use. With tcmalloc it took 2.0, and was faster.
What a training takes can be told beforehand only where blocks are used again.
"""

from __future__ import annotations

import ctypes
import os
import sys

from appliance.errors import ChildFailed

# gperftools' allocator without its profilers; Debian's libtcmalloc-minimal4.
LIBRARY = "libtcmalloc_minimal.so.4"
INSTALL = "apt-get install libtcmalloc-minimal4"
_PRELOAD = "LD_PRELOAD"
# oneDNN keeps the kernels of the last 1024 shapes that it met, some 0.3 MB each: those of a few lengths are
# enough. Read when it is loaded.
_ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


def is_installed() -> bool:
    """Whether the loader finds the library."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def use() -> None:
    """Return if the allocator is in use, else replace this process by the same program that uses it.

    To be called before anything that must not be done twice. Raises ChildFailed if it is not installed.
    """
    os.environ.update(_ENVIRONMENT)
    preloaded = os.environ.get(_PRELOAD, "").split()
    if LIBRARY in preloaded:
        return
    if not is_installed():
        raise ChildFailed(
            "no_allocator",
            f"training should find {LIBRARY}, without which it takes half as much memory again; it does not",
            next_step=INSTALL,
        )
    os.environ[_PRELOAD] = " ".join([LIBRARY, *preloaded])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  no shell is wanted
