"""What a check of the store says (scheduler.upkeep.fsck)."""

from dataclasses import asdict, dataclass, field
from typing import Any

#: Orphans that are named; the others are counted.
MAX_NAMED = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: ``what`` (blob, version, …), its name, and what to do about it."""

    what: str
    name: str
    problem: str
    advice: str = ""
    repaired: bool = False


@dataclass(slots=True)
class Report:
    """What was looked at and what was found. Sizes in bytes, of distinct blobs."""

    deep: bool
    blobs: int = 0
    bytes: int = 0
    versions: int = 0
    checkpoints: int = 0
    aliases: int = 0
    heads: int = 0
    findings: list[Finding] = field(default_factory=list)
    orphans: int = 0  # objects that no row knows: garbage collection takes them after its grace
    orphan_bytes: int = 0
    orphan_names: list[str] = field(default_factory=list)  # the first MAX_NAMED
    staged: int = 0  # uploads under way, or what is left of some
    staged_bytes: int = 0
    projects: dict[str, int] = field(default_factory=dict)

    def found(
        self, what: str, name: str, problem: str, advice: str = "", *, repaired: bool = False
    ) -> None:
        """Note something that is wrong, or was until just now."""
        self.findings.append(Finding(what, name, problem, advice, repaired))

    def orphan(self, key: str, size: int) -> None:
        """Note an object that no row knows."""
        self.orphans += 1
        self.orphan_bytes += size
        if len(self.orphan_names) < MAX_NAMED:
            self.orphan_names.append(key)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong, or nothing is any more."""
        return all(finding.repaired for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "clean": self.clean}
