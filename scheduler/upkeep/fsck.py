"""Is everything there that SQL says is there, and is it what SQL says it is?

Every blob row is held against the store, every version against its manifest, and the aliases,
checkpoints and heads against what they name. What is found is told once more by a second look:
the stack may be running. With ``repair`` only what loses nothing is done: a row whose bytes are
gone and that nothing refers to goes; one that something refers to counts as absent from then on,
so that the next upload of the same bytes, by a person or by the job run again, brings it back;
wrong bytes are put aside; a manifest is written anew from the rows it was made of.
"""

from collections.abc import Callable, Iterator

from sqlalchemy import Delete, delete, exists, func, select, text, update
from sqlalchemy.orm import Session

from espalier.errors import NotFound
from espalier.states import JOB_OPEN
from scheduler.bytes.blobrows import LARGE, digests, mark_damaged
from scheduler.catalog import heads
from scheduler.db import Database
from scheduler.models import (
    Artifact,
    Blob,
    Checkpoint,
    Job,
    Project,
    Version,
    VersionFile,
)
from scheduler.store.base import BLOBS, QUARANTINE, REGISTRY, STAGING, Driver, blob_key
from scheduler.upkeep import rows
from scheduler.upkeep.findings import Report

#: So many blobs are looked at in one go, without asking for 256 listings.
FEW = 50_000


def check(
    database: Database,
    driver: Driver,
    *,
    deep: bool = False,
    repair: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Look at everything; ``deep`` reads every byte. ``tell`` hears what is being done.

    Raises Unavailable when the store or the database is away.
    """
    look = _Look(database, driver, Report(deep), repair)
    tell("the database")
    look.at_database()
    prefixes = _prefixes(database)
    for number, prefix in enumerate(prefixes):
        if number % 32 == 0:
            tell(f"blobs, {number * 100 // len(prefixes)} %")
        look.at_blobs(prefix)
    tell("versions, checkpoints and aliases")
    rows.check(database, driver, look.report, repair=repair)
    tell("heads and what is staged")
    look.at_heads()
    look.at_staging()
    look.report.projects = _sizes(database)
    return look.report


def _prefixes(database: Database) -> list[str]:
    """Return by which first digits of their names blobs are looked at: all at once, if few."""
    with database.reading() as session:
        count = session.scalar(select(func.count()).select_from(Blob)) or 0
    return [""] if count <= FEW else [f"{number:02x}" for number in range(256)]


class _Look:
    """One pass over the store."""

    def __init__(self, database: Database, driver: Driver, report: Report, repair: bool) -> None:
        self._database = database
        self._driver = driver
        self._repair = repair
        self.report = report

    def at_database(self) -> None:
        """Ask SQLite whether its file is sound; PostgreSQL looks after its own."""
        with self._database.reading() as session:
            if session.get_bind().dialect.name != "sqlite":
                return
            for (line,) in session.execute(text("PRAGMA integrity_check(20)")):
                if line != "ok":
                    self.report.found("database", "espalier.db", line, "Restore a backup.")

    # --- Blobs ----------------------------------------------------------------------------

    def at_blobs(self, prefix: str) -> None:
        """Hold the rows whose sha256 begins with ``prefix`` against the store's listing."""
        folder = f"{prefix}/" if prefix else ""
        listed = {
            stored.key: stored.size for stored in self._driver.list(f"{BLOBS}sha256/{folder}")
        }
        with self._database.reading() as session:
            rows = session.scalars(select(Blob).where(Blob.sha256.startswith(prefix))).all()
        for row in rows:
            self.report.blobs += 1
            self.report.bytes += row.size
            size = listed.pop(blob_key(row.sha256), None)
            problem = self._problem(row, size)
            if problem:
                self._damaged(row, problem)
            elif row.damaged_at is not None:
                self._healed(row)
        for key, size in listed.items():
            self._orphan(key, size)

    def _problem(self, row: Blob, listed: int | None) -> str:
        size = listed
        if size != row.size:  # stored or deleted since the listing?
            size = self._driver.size(blob_key(row.sha256))
        if size is None:
            return "its bytes are not in the store"
        if size != row.size:
            return f"it has {size} bytes in the store, not {row.size}"
        if self.report.deep or row.damaged_at is not None:
            return self._hash_problem(row)
        return ""

    def _hash_problem(self, row: Blob) -> str:
        try:
            found = digests(self._driver.open(blob_key(row.sha256)), row.size)
        except NotFound:
            return "its bytes are not in the store"
        if found.sha256 != row.sha256:
            return f"its bytes have sha256 {found.sha256}"
        if row.size > LARGE or found.git_oid == row.git_oid:  # a large one's is of its pointer
            return ""
        return f"its git oid is {found.git_oid}"

    def _damaged(self, row: Blob, problem: str) -> None:
        with self._database.reading() as session:
            if session.get(Blob, row.sha256) is None:
                return  # garbage collection was here
            users = list(_users(session, row.sha256))
        if not users:
            self.report.found(
                "blob", row.sha256, problem, "Nothing refers to it.", repaired=self._repair
            )
        else:
            advice = (
                f"Needed by {'; '.join(users[:5])}{'; …' if len(users) > 5 else ''}: upload the"
                " same file again, or run the job again."
            )
            remade = self._repair and self._remade(row)
            self.report.found("blob", row.sha256, problem, advice, repaired=remade)
            if remade:
                return
        if self._repair and self._put_aside(row):
            with self._database.transaction() as session:
                mark_damaged(session, [row.sha256])
                if not users:
                    session.execute(_unreferenced(row.sha256))

    def _remade(self, row: Blob) -> bool:
        """Write it anew, if it is a manifest: its rows say what was in it."""
        if not rows.remake_manifest(self._database, self._driver, row.sha256):
            return False
        self._heal(row)
        return True

    def _put_aside(self, row: Blob) -> bool:
        """Move wrong bytes away; False when somebody has uploaded the right ones meanwhile."""
        key = blob_key(row.sha256)
        if self._driver.size(key) is not None:
            if not self._hash_problem(row):
                return False
            self._driver.move(key, f"{QUARANTINE}{row.sha256}")
        return True

    def _healed(self, row: Blob) -> None:
        problem = "it counts as lost, and its bytes are there and right"
        advice = "--repair counts it as there."
        self.report.found("blob", row.sha256, problem, advice, repaired=self._repair)
        if self._repair:
            self._heal(row)

    def _heal(self, row: Blob) -> None:
        with self._database.transaction() as session:
            session.execute(update(Blob).where(Blob.sha256 == row.sha256).values(damaged_at=None))

    def _orphan(self, key: str, size: int) -> None:
        with self._database.reading() as session:
            if session.get(Blob, key.rsplit("/", 1)[-1]) is not None:
                return  # stored since
        self.report.orphan(key, size)

    # --- Heads, staging -------------------------------------------------------------------

    def at_heads(self) -> None:
        """Hold the registry's copy in the store against SQL."""
        there = {stored.key: stored.size for stored in self._driver.list(REGISTRY)}
        with self._database.reading() as session:
            artifacts = session.scalars(select(Artifact)).all()
            wanted = {
                heads.key(artifact.project.name, artifact.name): artifact.id
                for artifact in artifacts
            }
        for key, artifact_id in wanted.items():
            self.report.heads += 1
            if not self._head_is_right(key, artifact_id):
                problem = "it does not say what the database says"
                advice = "--repair writes it anew."
                self.report.found("head", key, problem, advice, repaired=self._repair)
                if self._repair:
                    heads.write(self._database, self._driver, artifact_id)
        for key in sorted(there.keys() - wanted.keys()):
            self.report.orphan(key, there[key])

    def _head_is_right(self, key: str, artifact_id: str) -> bool:
        with self._database.reading() as session:
            artifact = session.get_one(Artifact, artifact_id)
            if artifact.revision != artifact.head:
                return True  # due: it is being written
            said = heads.compose(session, artifact)
        try:
            return b"".join(self._driver.open(key)) == said
        except NotFound:
            return False

    def at_staging(self) -> None:
        """Count what lies there; garbage collection knows what may go."""
        for stored in self._driver.list(STAGING):
            self.report.staged += 1
            self.report.staged_bytes += stored.size


def _users(session: Session, sha256: str) -> Iterator[str]:
    """Yield who needs the blob, and what could make it again."""
    rows = session.execute(
        select(Version, Artifact, Project.name)
        .join(Artifact, Artifact.id == Version.artifact_id)
        .join(Project, Project.id == Artifact.project_id)
        .where(
            (Version.manifest == sha256)
            | exists().where(VersionFile.version_id == Version.id, VersionFile.sha256 == sha256)
        )
        .order_by(Version.created_at)
    )
    for version, artifact, project in rows:
        made = f", made by job {version.job_id}" if version.job_id else ", brought by a person"
        yield f"{project}/{artifact.name}@v{version.number}{made}"
    kept = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id)
    for checkpoint in session.scalars(kept.where(Job.state.in_(JOB_OPEN))):
        if any(file["sha256"] == sha256 for file in checkpoint.files):
            yield f"checkpoint {checkpoint.step} of job {checkpoint.job_id}"


def _unreferenced(sha256: str) -> Delete:
    return delete(Blob).where(
        Blob.sha256 == sha256,
        ~exists().where(VersionFile.sha256 == sha256),
        ~exists().where(Version.manifest == sha256),
    )


def _sizes(database: Database) -> dict[str, int]:
    """Return project → bytes of the distinct blobs of its versions that are not deleted."""
    with database.reading() as session:
        distinct = (
            select(Project.name, VersionFile.sha256, VersionFile.size)
            .join(Artifact, Artifact.project_id == Project.id)
            .join(Version, Version.artifact_id == Artifact.id)
            .join(VersionFile, VersionFile.version_id == Version.id)
            .where(Version.deleted_at.is_(None))
            .distinct()
            .subquery()
        )
        rows = session.execute(
            select(distinct.c.name, func.sum(distinct.c.size)).group_by(distinct.c.name)
        )
        return {name: int(size) for name, size in rows}
