"""Safetensors without a library: names, shapes and raw bytes, for what is only rearranged.

The format (https://github.com/huggingface/safetensors): eight bytes that tell the header's length,
the header as JSON, the tensors' bytes in C order, little-endian. Any machine can do this, also one
that has neither MLX nor numpy.
"""

import json
import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Types an adapter has: bytes of an element, and the code of ``array`` that is as wide.
FLOATS = {"F32": (4, "I"), "F16": (2, "H"), "BF16": (2, "H")}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as it lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def transposed(self) -> "Tensor":
        """Return a matrix of a type in FLOATS with its axes swapped."""
        rows, columns = self.shape
        code = FLOATS[self.dtype][1]
        source, turned = array(code, self.data), array(code, bytes(len(self.data)))
        for row in range(rows):
            turned[row::rows] = source[row * columns : (row + 1) * columns]
        return Tensor(self.dtype, (columns, rows), turned.tobytes())

    def rows_to(self, count: int, *, repeat: bool = False) -> "Tensor":
        """Return a matrix with rows added up to ``count``: zeros, or its own over again."""
        size = len(self.data) // self.shape[0]
        more = (count - self.shape[0]) * size
        filling = self.data * (more // len(self.data) + 1) if repeat else bytes(more)
        return Tensor(self.dtype, (count, *self.shape[1:]), self.data + filling[:more])

    def times(self, factor: float) -> "Tensor":
        """Return it multiplied, as F32: no type that is narrower holds every product."""
        if self.dtype == "BF16":
            wide = array("f", array("I", (bits << 16 for bits in array("H", self.data))).tobytes())
        elif self.dtype == "F16":
            wide = array("f", struct.unpack(f"<{len(self.data) // 2}e", self.data))
        else:
            wide = array("f", self.data)
        return Tensor("F32", self.shape, array("f", (x * factor for x in wide)).tobytes())


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that was vetted (espalier.vetting.vet_safetensors)."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in about["data_offsets"])
            found[name] = Tensor(about["dtype"], tuple(about["shape"]), content[begin:end])
    return found


def write(path: Path, tensors: Mapping[str, Tensor], form: str) -> None:
    """Write tensors by name; ``form`` is who reads them: ``mlx``, or ``pt`` for transformers."""
    header: dict[str, object] = {"__metadata__": {"format": form}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(tensor.data)


if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("Safetensors are little-endian, and this machine is not.")
