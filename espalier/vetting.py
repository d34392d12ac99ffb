"""What may be inside a model, an adapter or a data set: data, never code.

A model folder is code when a loader unpickles it, imports a ``*.py`` beside it, or follows
``auto_map`` or ``model_file`` in its config (CVE-2026-5843: a plain load ran the file). Such
folders are refused whole, by name, and so are weights whose header points outside their file.
The server vets what is published, the worker what it fetches from a hub.
"""

import json
import math
import struct
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

from espalier.errors import InvalidInput
from espalier.gguf import GgufFault, check_gguf
from espalier.refs import check_path

#: Bytes; safetensors' own limit for a header.
MAX_HEADER = 100_000_000
#: Bytes; the largest config seen is a thousandth of this.
MAX_CONFIG = 8 << 20

_PICKLE = frozenset(".bin .ckpt .dill .joblib .npy .npz .pickle .pkl .pt .pt2 .pth".split())
_CODE = frozenset(
    ".bat .bundle .cmd .command .dll .dylib .exe .ipynb .jar .js .metal .metallib .pth .py .pyc"
    " .pyd .pyi .pyo .pyx .pyz .sh .so .wasm .zsh".split()
)
_ARCHIVE = frozenset(".7z .bz2 .gz .h5 .hdf5 .keras .rar .tar .tgz .whl .xz .zip .zst".split())
_CODE_KEYS = ("auto_map", "model_file")

_DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}


def _refuse(path: str, why: str, hint: str | None = None) -> NoReturn:
    raise InvalidInput(
        f"{path} is refused: {why}.", hint=hint, errors=[{"loc": ["files", path], "msg": why}]
    )


def vet_names(paths: Iterable[str]) -> None:
    """Raise InvalidInput for the first path that is unsafe, code, pickle or an archive."""
    seen: dict[str, str] = {}
    for path in paths:
        check_path(path)
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in _PICKLE:
            _refuse(
                path,
                f"loading a {suffix} file can run code that is hidden in it",
                "Publish the weights as safetensors.",
            )
        if suffix in _CODE:
            _refuse(path, "code from a model repository is not run here")
        if suffix in _ARCHIVE:
            _refuse(path, "archives are not unpacked here", "Publish the files themselves.")
        # On a Mac's disk both names would be one file, and the later one would win.
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in seen:
            _refuse(path, f"on a Mac it is the same file as {seen[folded]}")
        seen[folded] = path


def vet_config(path: str, content: bytes) -> None:
    """Raise InvalidInput when a config names code to load, or is not a JSON object."""
    if len(content) > MAX_CONFIG:
        _refuse(path, f"it has {len(content)} bytes; a config has at most {MAX_CONFIG}")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        _refuse(path, "it is not JSON")
    if not isinstance(config, dict):
        _refuse(path, "it is not a JSON object")
    for key in _CODE_KEYS:
        if config.get(key) is not None:
            _refuse(
                path,
                f"its {key!r} names code to load, and code from a model repository is not run here",
                "Use an architecture that mlx-lm has built in.",
            )


def vet_safetensors(path: str, file: BinaryIO, size: int) -> None:
    """Raise InvalidInput unless ``file`` (of ``size`` bytes, at its start) is sound safetensors.

    The rules are those of the format's reference reader: a JSON header within the file, known
    dtypes, and tensors that cover the data exactly, without holes or overlaps.
    """
    if size < 10:
        _refuse(path, f"it has {size} bytes, too few for a safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        _refuse(path, f"its header claims {length} bytes in a file of {size}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its safetensors header is not sound JSON ({error})")
    if not isinstance(header, dict):
        _refuse(path, "its safetensors header is not a JSON object")
    spans = sorted(
        _span(path, name, tensor) for name, tensor in header.items() if name != "__metadata__"
    )
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            _refuse(path, f"tensor {name!r} begins at byte {begin}, not at {end}")
        end = stop
    if end != size - 8 - length:
        _refuse(path, f"its tensors end at byte {end} of {size - 8 - length}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _span(path: str, name: str, tensor: Any) -> tuple[int, int, str]:
    """Return a tensor's first byte, its end, and its name."""
    if not isinstance(tensor, dict):
        _refuse(path, f"tensor {name!r} is not described by an object")
    bits = _DTYPE_BITS.get(str(tensor.get("dtype")))
    shape, offsets = tensor.get("shape"), tensor.get("data_offsets")
    if bits is None:
        _refuse(path, f"tensor {name!r} has the unknown dtype {tensor.get('dtype')!r}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        _refuse(path, f"tensor {name!r} has the shape {shape!r:.80}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        _refuse(path, f"tensor {name!r} has the offsets {offsets!r:.80}")
    begin, end = offsets
    if math.prod(shape) * bits != (end - begin) * 8:
        _refuse(path, f"tensor {name!r} of shape {shape!r:.80} does not fit bytes {begin}:{end}")
    return begin, end, name


def vet_gguf(path: str, file: BinaryIO, size: int) -> None:
    """Raise InvalidInput unless ``file`` (of ``size`` bytes, at its start) is sound GGUF."""
    try:
        check_gguf(file, size)
    except GgufFault as fault:
        _refuse(path, str(fault))


def is_config(path: str) -> bool:
    """Say whether loaders look for code names in this file."""
    name = PurePosixPath(path).name.lower()
    return name == "config.json" or name.endswith("_config.json")


def is_vetted(path: str) -> bool:
    """Say whether `vet_file` looks into files of this name."""
    return is_config(path) or path.lower().endswith((".safetensors", ".gguf"))


def vet_file(path: str, file: BinaryIO, size: int) -> None:
    """Vet one file's content by its path in the artifact; reads little of large files."""
    if is_config(path):
        vet_config(path, file.read(MAX_CONFIG + 1))
    elif path.lower().endswith(".safetensors"):
        vet_safetensors(path, file, size)
    elif path.lower().endswith(".gguf"):
        vet_gguf(path, file, size)


def vet_folder(directory: Path) -> None:
    """Vet all files below ``directory``, names first. Raises InvalidInput naming file and why."""
    files = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    vet_names(files)
    for name, path in files.items():
        with path.open("rb") as file:
            vet_file(name, file, path.stat().st_size)
