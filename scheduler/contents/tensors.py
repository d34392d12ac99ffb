"""Tensors of two sets of safetensors files, compared by name: dtype, shape, and the difference.

Values are read side by side, a piece at a time: memory does not grow with the model, and what is
the same bytes of the same blob is not read at all. numpy is loaded when it is needed: at rest the
control plane does not pay for it.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from espalier.errors import InvalidInput
from espalier.vetting import MAX_HEADER

#: Elements of each side in memory at a time.
PIECE = 1 << 18
#: Bytes of both sides that one comparison reads at most; a few seconds from a disk.
MOST_BYTES = 8 << 30

#: Yields the bytes of a blob: sha256, first byte, how many.
Opened = Callable[[str, int, int], Iterator[bytes]]

#: dtypes with a value each element, as numpy spells them; the others are packed or exotic.
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U16": "<u2",
    "BOOL": "u1",
}
#: Their values need more than float32 holds.
_WIDE = frozenset({"F64", "I64", "I32"})

TensorKind = Literal["added", "removed", "shape", "dtype", "values", "packed", "unread"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file: ``size`` bytes from ``start`` of the blob ``sha256``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that is not the same in both.

    ``l2`` and ``max_abs`` are of the difference, ``relative`` is ``l2`` over the norm before: None
    where they say nothing (other shapes, packed weights, values that are not finite).
    ``differing`` is the share of elements that differ. ``unread`` tensors were beyond the limit.
    """

    name: str
    change: TensorKind
    before: str | None
    after: str | None
    l2: float | None = None
    relative: float | None = None
    max_abs: float | None = None
    differing: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What a reading of two tensors of one shape found."""

    differing: float
    l2: float | None = None
    relative: float | None = None
    max_abs: float | None = None


def read_header(opened: Opened, sha256: str, size: int) -> list[Tensor]:
    """Return the tensors of a safetensors blob of ``size`` bytes. Raises InvalidInput."""
    first = b"".join(opened(sha256, 0, min(8, size)))
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise InvalidInput(f"The blob {sha256} is no safetensors file.")
    try:
        header = json.loads(b"".join(opened(sha256, 8, length)))
        return [
            _tensor(name, found, sha256, 8 + length)
            for name, found in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"The safetensors header of {sha256} is not sound ({error}).") from error


def _tensor(name: str, found: Mapping[str, Any], sha256: str, data: int) -> Tensor:
    begin, end = found["data_offsets"]
    shape = tuple(int(length) for length in found["shape"])
    return Tensor(name, str(found["dtype"]), shape, sha256, data + begin, end - begin)


def changes(
    opened: Opened, before: Iterable[Tensor], after: Iterable[Tensor], most_bytes: int = MOST_BYTES
) -> tuple[list[TensorChange], int]:
    """Return what differs, largest relative difference first, and how many tensors do not."""
    old = {tensor.name: tensor for tensor in before}
    new = {tensor.name: tensor for tensor in after}
    found = [TensorChange(n, "removed", str(old[n]), None) for n in old.keys() - new.keys()]
    found += [TensorChange(n, "added", None, str(new[n])) for n in new.keys() - old.keys()]
    same, left = 0, most_bytes
    # In the order of the files: a disk and a bucket are read from front to back.
    both = sorted(old.keys() & new.keys(), key=lambda name: (old[name].sha256, old[name].start))
    for name in both:
        one, other = old[name], new[name]
        change, read = _change(opened, one, other, left)
        left -= read
        if change is None:
            same += 1
        else:
            found.append(change)
    return sorted(found, key=_rank), same


def _change(
    opened: Opened, one: Tensor, other: Tensor, left: int
) -> tuple[TensorChange | None, int]:
    """Compare two tensors of one name; return also the bytes that were read for it."""
    if one.shape != other.shape:
        return TensorChange(one.name, "shape", str(one), str(other)), 0
    same_dtype = one.dtype == other.dtype
    if same_dtype and (one.sha256, one.start) == (other.sha256, other.start):
        return None, 0
    by_value = one.dtype in _NUMPY and other.dtype in _NUMPY
    if not same_dtype and not by_value:
        return TensorChange(one.name, "dtype", str(one), str(other)), 0
    if one.size + other.size > left:
        return TensorChange(one.name, "unread", str(one), str(other)), 0
    figures = measure(opened, one, other)
    read = one.size + other.size
    if same_dtype and figures.differing == 0:
        return None, read
    kind: TensorKind = "values" if by_value else "packed"
    return TensorChange(
        one.name,
        kind if same_dtype else "dtype",
        str(one),
        str(other),
        figures.l2,
        figures.relative,
        figures.max_abs,
        figures.differing,
    ), read


def _rank(change: TensorChange) -> tuple[int, float, str]:
    """Order: other names and shapes, then by relative difference, then what has none."""
    if change.change in ("added", "removed", "shape"):
        return 0, 0.0, change.name
    if change.relative is None:
        return 2, 0.0, change.name
    return 1, -change.relative, change.name


def measure(opened: Opened, one: Tensor, other: Tensor) -> Figures:
    """Read two tensors of one shape side by side.

    Packed weights (of quantized models) are compared element by element and have no norms: what
    they mean depends on their scales.
    """
    import numpy as np

    elements = max(1, math.prod(one.shape))
    by_value = one.dtype in _NUMPY and other.dtype in _NUMPY
    wide = one.dtype in _WIDE or other.dtype in _WIDE
    alike = one.dtype == other.dtype
    differing, squares, norm, largest = 0, 0.0, 0.0, 0.0
    for left, right in zip(_pieces(opened, one), _pieces(opened, other), strict=True):
        if alike:  # bit by bit: the same NaN is no difference
            differing += _unlike(left, right, one.size // elements)
        if not by_value:
            continue
        a, b = (_values(data, t.dtype, wide) for data, t in ((left, one), (right, other)))
        norm += float(np.square(a, dtype=np.float64).sum())
        if alike and left == right:
            continue
        if not alike:
            differing += int(np.count_nonzero(a != b))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = b - a
            squares += float(np.square(difference, dtype=np.float64).sum())
            largest = max(largest, float(np.abs(difference).max(initial=0.0)))
    share = differing / elements
    if not by_value or not math.isfinite(squares + norm):
        return Figures(share)
    l2 = math.sqrt(squares)
    return Figures(share, l2, l2 / math.sqrt(norm) if norm else None, largest)


def _unlike(left: bytes, right: bytes, width: int) -> int:
    """Return how many elements of ``width`` bytes differ."""
    import numpy as np

    if left == right:
        return 0
    kind = f"<u{width}" if width in (1, 2, 4, 8) and len(left) % width == 0 else "u1"
    a, b = (np.frombuffer(data, kind) for data in (left, right))
    return int(np.count_nonzero(a != b))


def _values(data: bytes, dtype: str, wide: bool) -> Any:
    """Return the elements as float32, or float64 where that is too narrow."""
    import numpy as np

    raw = np.frombuffer(data, _NUMPY[dtype])
    if dtype == "BF16":
        raw = (raw.astype("<u4") << 16).view("<f4")
    return raw.astype("<f8" if wide else "<f4", copy=False)


def _pieces(opened: Opened, tensor: Tensor) -> Iterator[bytes]:
    """Yield the tensor's bytes, PIECE elements at a time."""
    elements = max(1, math.prod(tensor.shape))
    size = max(1, tensor.size * PIECE // elements) if elements > PIECE else max(1, tensor.size)
    held = bytearray()
    for chunk in opened(tensor.sha256, tensor.start, tensor.size):
        held += chunk
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)
