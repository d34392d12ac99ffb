"""A pull-through cache of another hub: each file crosses the internet once for all Macs.

``upstream`` speaks HTTP, ``flight`` is one download and its readers, ``shelf`` is what lies on
the disk, ``room`` what is thrown out, ``grants`` who sees what somebody's own token fetched;
``cache`` decides which of them answers, and ``prefetch`` fetches ahead.
"""

from web.mirror.cache import Kept, Mirror, Remote
from web.mirror.prefetch import Prefetcher
from web.mirror.upstream import UpstreamAway
from web.mirror.wishes import Prefetch, Wish

__all__ = ["Kept", "Mirror", "Prefetch", "Prefetcher", "Remote", "UpstreamAway", "Wish"]
