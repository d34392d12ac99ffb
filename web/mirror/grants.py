"""Who may see what was fetched with somebody's own token.

A repository that this server's own access cannot read is fetched, with a person's token, into a
closed space. It is seen by the people whose own token the hub behind accepted for it, for
GRANT_DAYS from then on, and by the workers that run their jobs; by nobody else, admins included.
Tokens are not kept: only that one was accepted, of whom, and when.
"""

import time
from collections.abc import Collection
from contextlib import suppress

from web.mirror.shelf import Shelf, Space

#: After so many days the hub has to accept a token of this person again.
GRANT_DAYS = 30


class Grants:
    """One empty file a person beside the closed repository's answers; its time is the grant's."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def space(self, kind: str, repo: str, readers: Collection[str]) -> Space:
        """Return the space in which these people see the repository."""
        closed = Space(kind, repo, closed=True)
        return closed if self.allow(closed, readers) else Space(kind, repo)

    def allow(self, space: Space, readers: Collection[str]) -> bool:
        """Whether one of the readers (ids of users) may see a closed space."""
        limit = time.time() - GRANT_DAYS * 86_400
        for reader in readers:
            with suppress(FileNotFoundError):
                if self._shelf.grant(space, reader).stat().st_mtime > limit:
                    return True
        return False

    def give(self, space: Space, reader: str) -> None:
        """Note that the hub behind has just accepted this person's token for it."""
        path = self._shelf.grant(space, reader)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
