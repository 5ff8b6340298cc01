"""The peer: llama-server as it is inside `xllamacpp`, with the same file, threads and slots.

    PYTHON benchmarks/peer_server.py GGUF THREADS SLOTS N_CTX

with an interpreter that has xllamacpp. Prints its address; ends with its standard input.
"""

from __future__ import annotations

import sys

import xllamacpp


def main() -> None:
    """Serve until nobody holds the input open."""
    gguf, threads, slots, n_ctx = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.n_parallel = int(slots)
    # It divides its context among the slots, where ours is one pool.
    params.n_ctx = int(n_ctx)
    params.port = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
