"""A control plane on one store, used as it is used: people bring things, workers make others."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from espalier.messages import CheckpointPublished, FileEntry, Finish, OutputManifest
from espalier.refs import parse_artifact
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import SYSTEM, actor_for
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import aliases, publishing, registry
from scheduler.catalog.publishing import Publication
from scheduler.db import Database
from scheduler.lifecycle import assignments, ingest
from scheduler.models import Artifact, Blob, Lineage, Version
from scheduler.placing.dispatch import Ticket
from scheduler.store import open_driver
from tests.integration.scheduler.stack import Stack
from tests.integration.store.servers import moto_s3, rclone_s3
from tests.integration.web.site import DATASET, MODEL, safetensors

STORES = ["directory", "rclone", "moto"]


@contextmanager
def store(kind: str, root: Path) -> Iterator[Settings]:
    """Yield the settings of a directory, of rclone's S3 or of moto's."""
    with ExitStack() as stack:
        if kind == "rclone":
            yield stack.enter_context(rclone_s3(root)).settings()
        elif kind == "moto":
            yield stack.enter_context(moto_s3()).settings()
        else:
            yield Settings(store_url=f"file://{root / 'store'}")


class Shop:
    """``filled`` has a data set, a base model, and an adapter with its report, made by jobs."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.driver = open_driver(settings)
        self.driver.probe()
        self.blobs = Blobs(self.driver, settings)
        with database.transaction() as session:
            self.actor = actor_for(access.ensure_first_run(session))
        self.stack = Stack(database, self.blobs, self.actor)

    @classmethod
    def filled(cls, database: Database, settings: Settings) -> "Shop":
        shop = cls(database, settings)
        shop.bring("base", ArtifactKind.MODEL, MODEL)
        shop.bring("wikisql", ArtifactKind.DATASET, DATASET)
        shop.bring("wikisql", ArtifactKind.DATASET, {**DATASET, "more/notes.txt": b"second"})
        shop.train("tuned", checkpoints=(5,))
        shop.train("tuned")
        with database.transaction() as session:
            found = registry.find_artifact(session, "team", "tuned")
            one = registry.resolve(session, parse_artifact("team/tuned@v1"))
            aliases.set_alias(session, SYSTEM, found, "production", one)
        return shop

    def upload(self, data: bytes, owner: str) -> str:
        """Send bytes as ``owner`` does; return their sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        with self.database.transaction() as session:
            upload_id = self.blobs.open_upload(session, owner, sha256, len(data)).upload_id
        if upload_id is not None:
            if data:
                self.blobs.put_part(self.database, upload_id, owner, 1, io.BytesIO(data))
            self.blobs.complete(self.database, upload_id, owner)
        return sha256

    def files(self, contents: dict[str, bytes], owner: str) -> tuple[FileEntry, ...]:
        return tuple(
            FileEntry(path=path, sha256=self.upload(data, owner), size=len(data))
            for path, data in contents.items()
        )

    def bring(self, name: str, kind: ArtifactKind, contents: dict[str, bytes]) -> str:
        """Publish as a person does; return the version's id."""
        files = self.files(contents, f"user:{self.actor.user_id}")
        wanted = Publication("team", name, kind, files, {})
        return publishing.publish(self.database, self.blobs, self.actor, wanted)

    def begin(self, name: str, **spec: Any) -> Ticket:
        """Submit a training and have a worker claim it."""
        self.stack.submit({"data": "team/wikisql", **spec}, name=f"team/{name}")
        if not self.stack.boots:
            self.stack.worker()
        return self.stack.claimed()

    def save(self, ticket: Ticket, step: int, data: bytes) -> None:
        """Publish a checkpoint as the ticket's worker does."""
        files = self.files({"adapters.safetensors": data}, f"worker:{ticket.worker_id}")
        boot = self.stack.boots[ticket.worker_id]
        message = CheckpointPublished(boot_id=boot, step=step, files=files)
        with self.stack.at_work(ticket.worker_id) as (session, worker):
            ingest.checkpoint(session, worker, ticket.attempt_id, message)

    def train(self, name: str, checkpoints: tuple[int, ...] = ()) -> str:
        """Run a training to its end; return its job's id."""
        ticket = self.begin(name)
        for step in checkpoints:
            self.save(ticket, step, f"{ticket.attempt_id} at {step}".encode())
        contents = {
            "adapter_config.json": b'{"rank": 8}',
            "adapters.safetensors": safetensors({ticket.attempt_id: [2, 2]}),
        }
        files = self.files(contents, f"worker:{ticket.worker_id}")
        made = OutputManifest(role="adapter", kind=ArtifactKind.ADAPTER, files=files)
        boot = self.stack.boots[ticket.worker_id]
        message = Finish(boot_id=boot, state="succeeded", outputs=(made,))
        assignments.prepare(self.database, self.blobs, ticket.worker_id, ticket.attempt_id, message)
        self.stack.finish(ticket, outputs=message.outputs)
        return str(ticket.attempt_id)


def contents(database: Database) -> dict[str, Any]:
    """Return all that the registry says, in terms that another database shares."""
    with database.reading() as session:
        found: dict[str, Any] = {}
        for artifact in session.scalars(select(Artifact)):
            name = f"{artifact.project.name}/{artifact.name}"
            found[name] = {
                "kind": artifact.kind,
                "latest": artifact.latest,
                "aliases": {alias.name: alias.version.number for alias in artifact.aliases},
                "versions": {version.number: _version(version) for version in artifact.versions},
            }
        found["lineage"] = {
            (step.role, _commit(session.get_one(Version, step.parent_id)),
             _commit(session.get_one(Version, step.child_id)))
            for step in session.scalars(select(Lineage))
        }  # fmt: skip
        found["blobs"] = {
            (blob.sha256, blob.size, blob.git_oid)
            for blob in session.scalars(select(Blob).where(Blob.damaged_at.is_(None)))
        }
        return found


def _commit(version: Version) -> str:
    return f"{version.artifact.name}@{version.commit}"


def _version(version: Version) -> dict[str, Any]:
    return {
        "commit": version.commit,
        "manifest": version.manifest,
        "size": version.size,
        "meta": version.meta,
        "role": version.role,
        "created_at": version.created_at,
        "deleted_at": version.deleted_at,
        "files": {file.path: (file.sha256, file.size) for file in version.files},
    }


def assert_downloads(database: Database, blobs: Blobs) -> int:
    """Read every file of every version; return how many had the bytes that their name says."""
    with database.reading() as session:
        files = [
            (file.sha256, file.size)
            for version in session.scalars(select(Version))
            for file in version.files
        ]
    for sha256, size in files:
        data = b"".join(blobs.open(sha256))
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (sha256, size)
    return len(files)
