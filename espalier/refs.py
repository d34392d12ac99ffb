"""Artifact references, parsed in one place.

=========================  =====================================================
``project/name``           newest version
``project/name@v3``        version 3 (``@3`` is the same)
``project/name@<hex>``     by commit, 7 to 40 hexadecimal digits
``project/name@alias``     whatever the alias points at
``hf:org/name@revision``   a model or data set of the upstream hub
``job:<id>`` / ``…#role``  an output of another job
``step:<name>`` / ``…#role``  the same, inside a pipeline, before its jobs have ids
=========================  =====================================================

A reference without a project (``name``) belongs to the project it is used in.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from espalier.errors import InvalidInput

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
COMMIT = re.compile(r"[0-9a-f]{7,40}")
VERSION = re.compile(r"v?([1-9][0-9]{0,8})")

#: First path segments that belong to pages and APIs; no project may take one.
RESERVED = frozenset(
    "admin agent api artifacts auth data datasets docs events favicon.ico healthz home jobs login"
    " logout metrics models pipelines projects readyz resolve robots.txt settings spaces static"
    " storage styleguide submit team-settings tokens uploads v1 workers".split()
)


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """``project/name`` with an optional selector: a version, a commit or an alias."""

    project: str
    name: str
    selector: str | None = None

    @property
    def path(self) -> str:
        return f"{self.project}/{self.name}"

    @property
    def version(self) -> int | None:
        """The version number the selector asks for, if it asks for one."""
        match = VERSION.fullmatch(self.selector or "")
        return int(match[1]) if match else None

    def __str__(self) -> str:
        return f"{self.path}@{self.selector}" if self.selector else self.path


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository of the upstream hub, read through ``ESPALIER_UPSTREAM_HUB``."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class JobRef:
    """An output of another job; ``role`` picks one where there are several."""

    job: str
    role: str | None = None

    def __str__(self) -> str:
        return f"job:{self.job}#{self.role}" if self.role else f"job:{self.job}"


@dataclass(frozen=True, slots=True)
class StepRef:
    """An output of another step of the same pipeline."""

    step: str
    role: str | None = None

    def __str__(self) -> str:
        return f"step:{self.step}#{self.role}" if self.role else f"step:{self.step}"


Ref = ArtifactRef | HubRef | JobRef | StepRef


def _refuse(text: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{text!r} is not an artifact reference: {why}.",
        hint="Write project/name, project/name@v3, project/name@alias, hf:org/name@revision"
        " or job:ID.",
        errors=[{"loc": ["ref"], "msg": why}],
    )


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it can be a project's, an artifact's or an alias's; else raise."""
    if not NAME.fullmatch(name) or ".." in name:
        raise InvalidInput(
            f"{name!r} cannot be the {what}: use 1 to 96 letters, digits, '.', '_' or '-',"
            " beginning and ending with a letter or digit, without '..'.",
            errors=[{"loc": [what], "msg": "not a valid name"}],
        )
    return name


def check_project(name: str) -> str:
    """Return ``name`` if it can be a project's; the pages' own first words are refused."""
    check_name(name, "project")
    if name.lower() in RESERVED:
        raise InvalidInput(
            f"{name!r} cannot be a project: the word is one of Espalier's own pages.",
            errors=[{"loc": ["project"], "msg": "reserved word"}],
        )
    return name


def check_path(path: str) -> str:
    """Return a file's path inside an artifact if it stays inside it; else raise.

    Relative, forward slashes, no ``.``/``..``/empty segments, no NUL or control characters,
    no backslash or drive letter, at most 512 bytes.
    """
    bad = (
        not path
        or len(path.encode("utf-8", "surrogatepass")) > 512
        or any(ord(c) < 32 or ord(c) == 127 for c in path)
        or any(0xD800 <= ord(c) <= 0xDFFF for c in path)
        or "\\" in path
        or ":" in path
        or path.startswith("/")
        or any(part in ("", ".", "..") for part in path.split("/"))
    )
    if bad:
        raise InvalidInput(
            f"{path!r} cannot be a file's path in an artifact: it must be relative, with '/'"
            " between names and no '..', ':', backslash or control characters.",
            errors=[{"loc": ["path"], "msg": "unsafe path"}],
        )
    return str(PurePosixPath(path))


def parse_ref(text: str, project: str | None = None) -> Ref:
    """Parse any reference; a bare ``name`` needs ``project``. Raises InvalidInput."""
    if not text or text != text.strip() or any(ord(c) < 33 for c in text):
        raise _refuse(text, "it is empty or has white space or control characters in it")
    scheme, _, rest = text.partition(":")
    if scheme in ("job", "step") and rest:
        name, _, role = rest.partition("#")
        check_name(name, scheme)
        if role:
            check_name(role, "role")
        return JobRef(name, role or None) if scheme == "job" else StepRef(name, role or None)
    path, at, selector = (rest if scheme == "hf" and rest else text).partition("@")
    if at and not selector:
        raise _refuse(text, "nothing follows '@'")
    if scheme == "hf" and rest:
        return _hub_ref(text, path, selector)
    return _artifact_ref(text, path, selector, project)


def _hub_ref(text: str, path: str, revision: str) -> HubRef:
    parts = path.split("/")
    if len(parts) not in (1, 2):
        raise _refuse(text, "a hub repository is org/name")
    for part in parts:
        check_name(part, "hub repository")
    if revision:
        check_path(revision)
    return HubRef(path, revision or "main")


def _artifact_ref(text: str, path: str, selector: str, project: str | None) -> ArtifactRef:
    parts = path.split("/")
    if len(parts) == 1 and project:
        parts = [project, *parts]
    if len(parts) != 2:
        raise _refuse(text, "it needs exactly one '/' between project and name")
    check_project(parts[0])
    check_name(parts[1])
    if selector:
        check_name(selector, "version or alias")
    return ArtifactRef(parts[0], parts[1], selector or None)


def parse_artifact(text: str, project: str | None = None) -> ArtifactRef:
    """Parse a reference that must be a team artifact (an output, an alias to move)."""
    ref = parse_ref(text, project)
    if not isinstance(ref, ArtifactRef):
        raise _refuse(text, "an artifact of the team's store is needed here")
    return ref
