"""Real models for the child's tests."""

from __future__ import annotations

from tests.children import converter, starter, starter_gguf, starter_import, tiny

__all__ = ["converter", "starter", "starter_gguf", "starter_import", "tiny"]
