"""Alembic's directory: brings any earlier database to the tables of this version."""
