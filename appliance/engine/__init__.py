"""The engine: one GGUF model in a child process that answers chat requests through llama.cpp.

The daemon uses `client` and `protocol`; everything else runs in the child.
"""
