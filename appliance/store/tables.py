"""The database's tables, as SQLAlchemy Core objects. Changed only together with a migration."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

# Names for constraints, so that later migrations can refer to them (SQLAlchemy's documentation,
# "Configuring Constraint Naming Conventions").
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Every table has `position`, the order of creation: times have a resolution of one second.

api_keys = Table(
    "api_keys",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("sha256", String, nullable=False, unique=True),
    Column("admin", Boolean, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("changed_at", Integer, nullable=False),
    Column("model", String, nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String, nullable=False, index=True),
    Column("rows", Integer),
    Column("longest_row_bytes", Integer),
)

uploads = Table(
    "uploads",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("file_id", String),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("upload_id", String, ForeignKey("uploads.id"), nullable=False, index=True),
    Column("bytes", Integer, nullable=False),
)

base_models = Table(
    "base_models",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("architecture", String, nullable=False),
    Column("parameters", Integer, nullable=False),
    Column("context_length", Integer, nullable=False),
    Column("licence", String, nullable=False),
    Column("source", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("directory", String, nullable=False),
    Column("files", JSON, nullable=False),
    Column("sources", JSON(none_as_null=True)),
)

imports = Table(
    "imports",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("name", String, nullable=False),
    Column("licence", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("chat_template", String),
    Column("filenames", JSON, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("finished_at", Integer),
    Column("error", JSON(none_as_null=True)),
)

jobs = Table(
    "jobs",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("training_file", String, nullable=False),
    Column("validation_file", String),
    Column("seed", Integer, nullable=False),
    Column("suffix", String),
    Column("metadata", JSON, nullable=False),
    Column("method", JSON, nullable=False),
    Column("appliance", JSON, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("finished_at", Integer),
    Column("estimated_finish", Integer),
    Column("fine_tuned_model", String),
    Column("trained_tokens", Integer),
    Column("error", JSON(none_as_null=True)),
)

job_events = Table(
    "job_events",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("key", String, nullable=False),
    Column("level", String, nullable=False),
    Column("message", String, nullable=False),
    Column("data", JSON(none_as_null=True)),
    UniqueConstraint("job_id", "key"),
    Index("ix_job_events_job_id_position", "job_id", "position"),
)

releases = Table(
    "releases",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False),
    Column("base_model", String, nullable=False),
    Column("adapter_directory", String, nullable=False),
    Column("files", JSON, nullable=False),
    Column("adapter_file", JSON(none_as_null=True)),
)
