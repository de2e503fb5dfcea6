"""The ledger's tables as they are now. How they came to be is in `migrations`.

Times are milliseconds since 1970 in UTC. Nothing that a person said is ever overwritten: a changed
mind is a new row, and the old one says when it was withdrawn.
"""

from __future__ import annotations

import secrets
import time

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

annotation_queues = Table(
    "annotation_queues",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("annotators", Integer, nullable=False),  # how many people judge each item
    Column("labels", JSON, nullable=False),  # the closed set of answers, or an empty list
    Column("created_ms", BigInteger, nullable=False),
)

annotation_items = Table(
    "annotation_items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("queue", ForeignKey("annotation_queues.id"), nullable=False),
    Column("task", Text, nullable=False),  # judge | choose
    Column("fingerprint", Text, nullable=False),  # hash of task, prompt and answers: nothing twice
    Column("row_id", Text, nullable=False),
    Column("group_name", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("prompt", JSON, nullable=False),  # messages, the answer not among them
    Column("answers", JSON, nullable=False),  # [{text, origin}]: up to one to judge, two to choose
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("queue", "fingerprint"),
)

annotation_suggestions = Table(
    "annotation_suggestions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item", ForeignKey("annotation_items.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("item", "model"),
)

annotations = Table(
    "annotations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item", ForeignKey("annotation_items.id"), nullable=False),
    Column("annotator", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("value", Text),
    Column("note", Text, nullable=False),
    Column("suggested", Text),  # the model whose suggestion was in view
    Column("seconds", Float),
    Column("created_ms", BigInteger, nullable=False),
    Column("withdrawn_ms", BigInteger),
    Column("ticks", JSON(none_as_null=True)),  # of `judging.TICKS`; null where not asked for
    Index("annotations_item", "item", "annotator"),
)

annotation_claims = Table(
    "annotation_claims",
    metadata,
    Column("item", ForeignKey("annotation_items.id"), primary_key=True),
    Column("annotator", Text, primary_key=True),
    Column("until_ms", BigInteger, nullable=False),
)

chats = Table(
    "chats",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, primary_key=True),
    Column("title", Text, nullable=False),
    Column("system", Text, nullable=False),
    Column("turns", JSON, nullable=False),
    Column("words", Text, nullable=False),  # what a search looks through, in lower case
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)


files = Table(
    "files",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
)

uploads = Table(
    "uploads",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("file", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("keep_seconds", Integer),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("upload", ForeignKey("uploads.id"), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("training_file", Text, nullable=False),
    Column("validation_file", Text),
    Column("suffix", Text, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("hyperparameters", JSON, nullable=False),
    Column("metadata", JSON),
    Column("status", Text, nullable=False),
    Column("error", JSON),
    Column("plan", JSON),
    Column("fine_tuned_model", Text),
    Column("result_files", JSON, nullable=False),
    Column("trained_tokens", BigInteger),
    Column("is_paused", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("worker", Text),
    Column("lease_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("finish_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Index("jobs_project", "project", "seq"),
    Index("jobs_status", "status", "seq"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job", ForeignKey("jobs.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("level", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("job", "key"),
)

job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job", ForeignKey("jobs.id"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("job", "step"),
)

tuned_models = Table(
    "tuned_models",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("project", Text, nullable=False),
    Column("job", ForeignKey("jobs.id"), nullable=False),
    Column("folder", Text, nullable=False),
    Column("is_listed", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("project", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
)


def new_id(prefix: str) -> str:
    """An id that nobody can guess: the prefix and 120 random bits."""
    return prefix + secrets.token_hex(15)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
