"""The training child: rows and a base model in, a LoRA adapter out.

Only the child itself imports torch; nothing here is imported by the daemon.
"""
