"""Every table. The same schema on SQLite and PostgreSQL; migrations make it, a test compares them.

Times are UTC by the database's own clock (scheduler.db.now). Sizes are bytes.
"""

from scheduler.models.aliases import AliasMove, Gate
from scheduler.models.base import Base, Timestamp
from scheduler.models.caches import ModelConfig, WorkerBlob, XetXorb
from scheduler.models.history import Audit, Event, LogChunk, Metric
from scheduler.models.jobs import Attempt, Checkpoint, Job, JobDependency, JobInput
from scheduler.models.people import Project, ProjectMember, Token, User, Worker
from scheduler.models.presence import Presence
from scheduler.models.store import (
    Alias,
    Artifact,
    Blob,
    FormerName,
    Lineage,
    Upload,
    UploadPart,
    Version,
    VersionFile,
)
from scheduler.models.webhooks import Delivery, Webhook

__all__ = [
    "Alias",
    "AliasMove",
    "Artifact",
    "Attempt",
    "Audit",
    "Base",
    "Blob",
    "Checkpoint",
    "Delivery",
    "Event",
    "FormerName",
    "Gate",
    "Job",
    "JobDependency",
    "JobInput",
    "Lineage",
    "LogChunk",
    "Metric",
    "ModelConfig",
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
    "Webhook",
    "Worker",
    "WorkerBlob",
    "XetXorb",
]
