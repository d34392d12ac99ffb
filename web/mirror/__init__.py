"""A pull-through cache of another hub: each file crosses the internet once for all Macs.

``upstream`` speaks HTTP, ``flight`` is one download and its readers, ``shelf`` is what lies on
the disk, ``cache`` decides which of them answers.
"""

from web.mirror.cache import Mirror, Remote
from web.mirror.upstream import UpstreamAway

__all__ = ["Mirror", "Remote", "UpstreamAway"]
