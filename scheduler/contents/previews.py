"""What is in a file, told from as few of its bytes as possible.

Whoever made the file may lie: every read, count and length is bounded, and what does not add up is
`Odd`, a sentence for people. ``read(start, length)`` returns that many bytes of the file, or fewer
at its end.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from espalier.gguf import GGML_TYPES

Read = Callable[[int, int], bytes]

#: Bytes of a header that are read; the largest seen (10,000 tensors) has 2 MiB.
MAX_HEADER = 8 << 20
#: Bytes of a GGUF's head: the vocabulary is in it, 12 MiB in the largest seen.
MAX_GGUF = 48 << 20
#: Bytes of a text, or of a JSON document, that are shown.
MAX_TEXT = 64 << 10
MAX_JSON = 1 << 20
#: Rows of one view of a .jsonl file, and the bytes they are looked for in.
ROWS, ROW_BYTES = 20, 256 << 10
#: Values of metadata: characters of one, and entries of a list.
_LONG, _MANY = 400, 8


class Odd(Exception):
    """The file is not what its name says; the text says how."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a header; ``bytes`` is what it takes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(slots=True)
class Header:
    """The tensors of a file and what is told about them, in the file's order."""

    format: str
    metadata: dict[str, str] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors)

    def types(self) -> list[tuple[str, int, int]]:
        """Return (dtype, tensors, bytes), the largest share first."""
        found: dict[str, tuple[int, int]] = {}
        for tensor in self.tensors:
            count, size = found.get(tensor.dtype, (0, 0))
            found[tensor.dtype] = count + 1, size + tensor.bytes
        return sorted(((k, *v) for k, v in found.items()), key=lambda row: -row[2])


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a .jsonl file from byte ``start``; ``after`` is where the next ones begin."""

    rows: list[Any]
    start: int
    after: int | None


# --- safetensors --------------------------------------------------------------------------


def safetensors(read: Read, size: int) -> Header:
    """Return a safetensors file's header. Raises Odd."""
    first = read(0, min(8, size))
    if len(first) < 8:
        raise Odd(f"It has {size} bytes, too few for a safetensors file.")
    (length,) = struct.unpack("<Q", first)
    if not 2 <= length <= size - 8:
        raise Odd(f"Its header claims {length:,} bytes in a file of {size:,}.")
    if length > MAX_HEADER:
        raise Odd(f"Its header has {length:,} bytes; headers up to {MAX_HEADER:,} are shown.")
    try:
        header = json.loads(read(8, length))
    except (ValueError, RecursionError) as error:
        raise Odd("Its header is not JSON.") from error
    if not isinstance(header, dict):
        raise Odd("Its header is not a JSON object.")
    metadata = header.pop("__metadata__", None)
    found = Header("safetensors")
    if isinstance(metadata, dict):
        found.metadata = {_cut(str(key)): _cut(str(value)) for key, value in metadata.items()}
    room = size - 8 - length
    found.tensors = [_safe_tensor(name, entry, room) for name, entry in header.items()]
    return found


def _safe_tensor(name: str, entry: Any, room: int) -> Tensor:
    """Return one tensor; ``room`` is the bytes behind the header."""
    try:
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        dtype = entry["dtype"]
    except (KeyError, TypeError, ValueError):
        raise Odd(f"Tensor {_cut(name)!r} is not described as the format asks.") from None
    numbers = (*shape, begin, end)
    if len(shape) > 16 or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise Odd(f"Tensor {_cut(name)!r} has an impossible shape or place.")
    if not begin <= end <= room:
        raise Odd(f"Tensor {_cut(name)!r} ends at byte {end:,} of {room:,}.")
    return Tensor(name, _cut(str(dtype)), shape, end - begin)


# --- GGUF ---------------------------------------------------------------------------------

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_DEPTH = 4096, 65_536, 2
#: Texts in all lists together; the largest vocabulary and its merges are half of it.
_MAX_TEXTS = 2_000_000


def gguf(read: Read, size: int) -> Header:
    """Return a GGUF file's metadata, with long lists cut, and its tensors. Raises Odd."""
    source = _Source(read, size)
    if source.take(4) != b"GGUF":
        raise Odd("It does not begin as a GGUF file does.")
    version = source.number("<I")
    if version not in (2, 3):
        raise Odd(f"It is GGUF version {version}; versions 2 and 3 are read.")
    tensors, keys = source.number("<Q"), source.number("<Q")
    if keys > _MAX_KEYS or tensors > _MAX_TENSORS:
        raise Odd(f"It claims {keys:,} keys and {tensors:,} tensors: more than any model has.")
    found = Header(f"GGUF {version}")
    for _ in range(keys):
        key = source.text()
        found.metadata[_cut(key)] = _value(source, source.number("<I"), 0)
    found.tensors = [_ggml_tensor(source, size) for _ in range(tensors)]
    return found


def _value(source: "_Source", kind: int, depth: int) -> str:
    """Read a value of the numbered kind and return it as text; a long list is cut."""
    if kind == _STRING:
        return _cut(source.text())
    if kind in _SCALARS:
        return _told(source.number(_SCALARS[kind]))
    if kind != _ARRAY or depth == _MAX_DEPTH:
        raise Odd(f"A value has the unknown type {kind}.")
    inner, count = source.number("<I"), source.number("<Q")
    if count > source.size:
        raise Odd(f"A list in its header claims {count:,} entries.")
    if inner in _SCALARS:
        width = struct.calcsize(_SCALARS[inner])
        shown = [_told(source.number(_SCALARS[inner])) for _ in range(min(count, _MANY))]
        source.skip((count - len(shown)) * width)
    elif inner == _STRING:
        shown = [_cut(source.text(), 40) for _ in range(min(count, _MANY))]
        source.skip_texts(count - len(shown))
    else:
        if count > _MANY:
            raise Odd(f"A list of lists has {count:,} entries.")
        shown = [_value(source, inner, depth + 1) for _ in range(count)]
    more = f", … {count:,} in all" if count > len(shown) else ""
    return f"[{', '.join(shown)}{more}]"


def _ggml_tensor(source: "_Source", size: int) -> Tensor:
    name, dimensions = source.text(), source.number("<I")
    if dimensions > 8:
        raise Odd(f"Tensor {_cut(name)!r} has {dimensions} dimensions.")
    shape = tuple(source.number("<Q") for _ in range(dimensions))[::-1]  # as others write it
    kind, offset = source.number("<I"), source.number("<Q")
    label, block, width = GGML_TYPES.get(kind, (f"type {kind}", 1, 0))
    weight = math.prod(shape) * width // block
    if weight > size or offset > size:
        raise Odd(f"Tensor {_cut(name)!r} of shape {list(shape)!s:.80} does not fit the file.")
    return Tensor(name, label, shape, weight)


class _Source:
    """A file read from its start in growing steps, up to MAX_GGUF bytes."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self.size = read, size
        self._held, self._start, self._at = b"", 0, 0
        self._step = 64 << 10
        self._texts = _MAX_TEXTS

    def take(self, count: int) -> bytes:
        """Return the next bytes. Raises Odd where the file, or what is read of it, ends."""
        end = self._at + count
        if end > min(self.size, MAX_GGUF):
            where = f"in the {self.size:,} bytes" if end > self.size else f"in {MAX_GGUF:,} bytes"
            raise Odd(f"Its header does not end {where} that there are to read.")
        if end > self._start + len(self._held):
            wanted = min(max(count, self._step), self.size - self._at)
            self._held, self._start = self._read(self._at, wanted), self._at
            self._step = min(self._step * 4, 4 << 20)
            if len(self._held) < count:
                raise Odd("The file ends within its header.")
        begin = self._at - self._start
        self._at = end
        return self._held[begin : begin + count]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > MAX_HEADER:
            raise Odd(f"A text in its header claims {length:,} bytes.")
        return self.take(length).decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        """Go on behind bytes that nobody asks for: they are not read."""
        if self._at + count > min(self.size, MAX_GGUF):
            raise Odd(f"A list in its header claims {count:,} bytes.")
        self._at += count
        if self._at > self._start + len(self._held):
            self._held, self._start = b"", self._at

    def skip_texts(self, count: int) -> None:
        self._texts -= count
        if count * 8 > self.size or self._texts < 0:
            raise Odd(f"A list in its header claims {count:,} texts.")
        for _ in range(count):
            self.skip(self.number("<Q"))


# --- Text ---------------------------------------------------------------------------------


def document(read: Read, size: int) -> str:
    """Return a JSON document written over several lines. Raises Odd."""
    if size > MAX_JSON:
        raise Odd(f"It has {size:,} bytes; documents up to {MAX_JSON:,} are shown whole.")
    try:
        value = json.loads(read(0, size))
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise Odd("It is not JSON.") from error


def text(read: Read, size: int) -> str:
    """Return the file's beginning as text. Raises Odd for bytes that are none."""
    data = read(0, min(size, MAX_TEXT))
    if b"\0" in data:
        raise Odd("It is no text.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if size > len(data) and error.start > len(data) - 4:  # cut within a letter
            return data[: error.start].decode()
        raise Odd("It is no text in UTF-8.") from error


def rows(read: Read, size: int, start: int = 0) -> Rows:
    """Return up to ROWS rows of a .jsonl file, from the first line that begins at ``start``.

    A line that is not JSON is shown as the text it is. Raises Odd.
    """
    if not 0 <= start <= size:
        raise Odd(f"It has {size:,} bytes: no row begins at byte {start:,}.")
    found: list[Any] = []
    at = start
    for line in _lines(read(start, min(ROW_BYTES, size - start)), start, size):
        at += len(line)
        if line.strip():
            found.append(_row(line))
        if len(found) == ROWS:
            break
    if not found and start < size:
        raise Odd(f"Its row at byte {start:,} is longer than {ROW_BYTES:,} bytes.")
    return Rows(found, start, at if at < size else None)


def _lines(data: bytes, start: int, size: int) -> Iterator[bytes]:
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n") or start + len(data) == size:
            yield line


def _row(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return _cut(line.decode("utf-8", "replace"), 4000)


def _told(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cut(value: str, most: int = _LONG) -> str:
    return value if len(value) <= most else f"{value[:most]}…"
