"""The hub as a place for large files and long lists; what it is compared with runs beside it.

    python -m benchmarks.hub --all
    python -m benchmarks.hub transfer again --size 256M --pairs 3

============  ===============================================================================
``transfer``  upload and download ÷ ``curl`` and a plain file server on the same disk
``again``     the same file a second time: bytes sent, seconds beyond hashing
``memory``    what the server holds while a large file goes up and comes down
``cold``      three cold clients ask at once for what is upstream: GETs made there
``listing``   long lists of repositories and files, on SQLite and PostgreSQL
============  ===============================================================================

Everything goes over the loopback to real server processes; uploads count from the file on the
client's disk to the published version, the client's own hashing included. ``--quick`` is small.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read by huggingface_hub when it is imported; uploads go by LFS, the path with a curl in it.
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

from benchmarks import hub_listing, hub_transfer
from benchmarks.common import RESULTS, keep

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Return bytes: ``512M``, ``10G``."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512M or 10G")
    return int(found[1]) * _UNITS[found[2]]


def cases(args: argparse.Namespace) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Return what can be measured, by name."""
    one, large = args.size, args.large
    return {
        "transfer": lambda home: hub_transfer.transfer(home, one, args.pairs),
        "again": lambda home: hub_transfer.again(home, one),
        "memory": lambda home: hub_transfer.memory(home, large),
        "cold": lambda home: hub_transfer.cold(home, one),
        "listing": lambda home: hub_listing.listing(home, args.count),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", nargs="*", help="transfer, again, memory, cold, listing")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--quick", action="store_true", help="64 MiB, 256 MiB, 1,000 entries")
    parser.add_argument("--size", type=size, help="of a file (1G)")
    parser.add_argument("--large", type=size, help="of the file whose memory is watched (10G)")
    parser.add_argument("--count", type=int, help="repositories, and files of a tree (10000)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where it is measured: a disk with room")
    args = parser.parse_args()
    quick = args.quick
    args.size = args.size or (64 << 20 if quick else 1 << 30)
    args.large = args.large or (256 << 20 if quick else 10 << 30)
    args.count = args.count or (1_000 if quick else 10_000)
    known = cases(args)
    chosen = list(known) if args.all or not args.case else args.case
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"there is no case {unknown[0]!r}: {', '.join(known)}")
    return _measure({name: known[name] for name in chosen}, args)


def _measure(chosen: dict[str, Callable[[Path], dict[str, Any]]], args: argparse.Namespace) -> int:
    passed = True
    for name, case in chosen.items():
        with tempfile.TemporaryDirectory(dir=args.directory) as home:
            needed = 3 * (args.large if name == "memory" else args.size) + (2 << 30)
            if shutil.disk_usage(home).free < needed:
                raise SystemExit(f"{name} needs {needed >> 30} GiB in {home}: name a --directory.")
            result = case(Path(home))
        passed &= bool(result["passed"])
        keep(f"hub_{name}", result)
    print(f"results: {RESULTS}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
