"""Identifiers: short, sortable by creation time, safe in URLs, paths and queue names."""

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """Return 16 characters: 9 of milliseconds since the epoch, 7 random (35 bits).

    Ids of one process ascend, also within a millisecond: a pipeline's jobs sort as submitted.
    """
    global _last
    with _lock:
        fresh = (int(time.time() * 1000) << 35) | secrets.randbits(35)
        _last = value = max(fresh, _last + 1 + secrets.randbits(24))
    chars = []
    for _ in range(16):
        value, digit = divmod(value, 32)
        chars.append(_ALPHABET[digit])
    return "".join(reversed(chars))
