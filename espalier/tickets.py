"""Tickets for one blob of another worker: made by the control plane, judged by whoever holds it.

A ticket is ``<expiry>.<hmac>``: an HMAC-SHA256, under the key that the holder made at its start
and told the control plane alone, over the blob's sha256 and the second in which the ticket ends.
"""

import hashlib
import hmac

#: Seconds for which a ticket is good: longer than anything large takes on a LAN.
TICKET_SECONDS = 6 * 3600


def issue(key: str, sha256: str, expires: int) -> str:
    """Return the ticket for one blob, good until ``expires`` (seconds of the epoch)."""
    return f"{expires}.{_seal(key, sha256, expires)}"


def is_good(key: str, sha256: str, ticket: str, now: float) -> bool:
    """Say whether the ticket was made with this key, for this blob, and has not ended."""
    expires, _, seal = ticket.partition(".")
    if not (expires.isascii() and expires.isdecimal() and len(expires) <= 12 and seal.isascii()):
        return False
    sound = hmac.compare_digest(seal, _seal(key, sha256, int(expires)))
    return sound and now < int(expires)


def _seal(key: str, sha256: str, expires: int) -> str:
    said = f"{sha256}|{expires}".encode("ascii")
    return hmac.new(key.encode(), said, hashlib.sha256).hexdigest()
