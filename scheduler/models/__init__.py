"""Every table. The same schema on SQLite and PostgreSQL; migrations make it, a test compares them.

Times are UTC by the database's own clock (scheduler.db.now). Sizes are bytes.
"""

from scheduler.models.base import Base, Timestamp
from scheduler.models.history import Audit, Event, LogChunk, Metric
from scheduler.models.jobs import Attempt, Checkpoint, Job, JobDependency, JobInput
from scheduler.models.people import Project, ProjectMember, Token, User, Worker
from scheduler.models.presence import Presence
from scheduler.models.store import (
    Alias,
    Artifact,
    Blob,
    Lineage,
    Upload,
    UploadPart,
    Version,
    VersionFile,
)

__all__ = [
    "Alias",
    "Artifact",
    "Attempt",
    "Audit",
    "Base",
    "Blob",
    "Checkpoint",
    "Event",
    "Job",
    "JobDependency",
    "JobInput",
    "Lineage",
    "LogChunk",
    "Metric",
    "Presence",
    "Project",
    "ProjectMember",
    "Timestamp",
    "Token",
    "Upload",
    "UploadPart",
    "User",
    "Version",
    "VersionFile",
    "Worker",
]
