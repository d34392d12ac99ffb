import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import InvalidInput
from espalier.vetting import (
    MAX_CONFIG,
    is_config,
    vet_config,
    vet_folder,
    vet_names,
    vet_safetensors,
)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def vet(content: bytes) -> None:
    vet_safetensors("model.safetensors", io.BytesIO(content), len(content))


def test_what_a_model_is_made_of_passes() -> None:
    vet_names(
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "merges.txt",
            "README.md",
            "adapter.gguf",
        ]
    )


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_model.bin",
        "weights.PT",
        "optimizer.npz",
        "deep/er/model.ckpt",
        "modeling_x.py",
        "setup.sh",
        "lib.dylib",
        "model.tar.gz",
        "../config.json",
        "/etc/passwd",
        "a\\b.json",
    ],
)
def test_code_pickle_archives_and_escapes_are_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        vet_names(["config.json", path])
    assert path.replace("\\", "\\\\") in refused.value.detail


def test_two_names_that_a_mac_takes_for_one_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"same file as config\.json"):
        vet_names(["config.json", "Config.JSON"])


@pytest.mark.parametrize("key", ["auto_map", "model_file"])
def test_a_config_that_names_code_is_refused(key: str) -> None:
    vet_config("config.json", json.dumps({"model_type": "llama", key: None}).encode())
    with pytest.raises(InvalidInput, match=key):
        vet_config("config.json", json.dumps({key: "model.py"}).encode())
    with pytest.raises(InvalidInput, match=key):  # the last one counts, as in every loader
        vet_config("config.json", f'{{"{key}": null, "{key}": ""}}'.encode())


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (MAX_CONFIG + 1)])
def test_a_config_that_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        vet_config("config.json", content)


def test_configs_are_known_by_name() -> None:
    assert is_config("config.json")
    assert is_config("sub/tokenizer_config.json")
    assert not is_config("tokenizer.json")


def test_sound_safetensors_pass() -> None:
    vet(safetensors({}))
    header = {
        "__metadata__": {"format": "mlx"},
        "b": tensor(16, 20, [2], "BF16"),
        "a": tensor(0, 16, [2, 2]),
        "scalar": tensor(20, 24, []),
        "empty": tensor(24, 24, [0, 7]),
    }
    vet(safetensors(header, b"\0" * 24))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "too few"),
        (b"\x80\x05pickle...", "claims"),
        (safetensors({}, length=1 << 62), "claims"),
        (safetensors(b"not json at all!"), "not sound JSON"),
        (safetensors(b'["list", "of it"]'), "not a JSON object"),
        (safetensors({"a": 1}), "not described by an object"),
        (safetensors({"a": tensor(0, 4, [1], "OBJ")}, b"\0" * 4), "unknown dtype"),
        (safetensors({"a": tensor(0, 8, [1])}, b"\0" * 8), "does not fit"),
        (safetensors({"a": tensor(0, 4, [-1])}, b"\0" * 4), "shape"),
        (safetensors({"a": tensor(0, 4, ["1"])}, b"\0" * 4), "shape"),
        (safetensors({"a": tensor(0, 4, [1])}), "end at byte 4 of 0"),
        (safetensors({"a": tensor(-4, 0, [1])}, b"\0" * 4), "offsets"),
        (safetensors({"a": tensor(4, 8, [1])}, b"\0" * 8), "begins at byte 4"),
        (
            safetensors({"a": tensor(0, 4, [1]), "b": tensor(0, 4, [1])}, b"\0" * 4),
            "begins at byte 0, not at 4",
        ),
        (safetensors({"a": tensor(0, 4, [1])}, b"\0" * 5), "end at byte 4 of 5"),
        (safetensors(b'{"a": {}, "a": {}}'), "twice"),
    ],
)
def test_safetensors_that_are_not_sound_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        vet(content)


@given(st.binary(max_size=64), st.integers(0, 200))
def test_no_bytes_get_past_the_header_check_or_break_it(junk: bytes, length: int) -> None:
    content = struct.pack("<Q", length) + junk
    try:
        vet(content)
    except InvalidInput:
        return
    assert json.loads(content[8 : 8 + length]) is not None


def test_files_that_real_writers_make_pass(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    save_file({"w": numpy.ones((3, 4), "float16"), "b": numpy.ones(2)}, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    vet_folder(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.pkl").touch()
    with pytest.raises(InvalidInput, match=r"sub/x\.pkl"):
        vet_folder(tmp_path)
