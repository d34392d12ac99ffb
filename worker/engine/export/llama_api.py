"""llama.cpp's C functions, out of the library that ``xllamacpp`` brings: logits, and ggml's types.

The package's own server answers with text. What a proof needs besides, the log probability of
every token of a given text, and what a K type needs, ggml's own rounding, are in the same shared
library as the public functions of llama.h and ggml.h. Structures grow at their end from release to
release, so they are taken by value in a buffer larger than any, and only their oldest fields are
touched. Imports no MLX.
"""

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

#: Bytes; the largest of these structures has 200.
_ROOM = 1024
#: Tokens computed at once.
_BATCH = 256


class Missing(RuntimeError):
    """The installed ``xllamacpp`` does not show the functions; the text says which."""


class _Params(ctypes.Structure):
    _fields_ = (("raw", ctypes.c_byte * _ROOM),)


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("raw", ctypes.c_byte * _ROOM),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
        ("raw", ctypes.c_byte * _ROOM),
    )


_P = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (_Params, ()),
    "llama_context_default_params": (_ContextParams, ()),
    "llama_model_load_from_file": (_P, (ctypes.c_char_p, _Params)),
    "llama_model_free": (None, (_P,)),
    "llama_init_from_model": (_P, (_P, _ContextParams)),
    "llama_free": (None, (_P,)),
    "llama_model_get_vocab": (_P, (_P,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (_P,)),
    "llama_get_memory": (_P, (_P,)),
    "llama_memory_clear": (None, (_P, ctypes.c_bool)),
    "llama_batch_init": (_Batch, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (ctypes.c_int32, (_P, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_P, ctypes.c_int32)),
    "llama_set_n_threads": (None, (_P, ctypes.c_int32, ctypes.c_int32)),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        (
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_float),
            _P,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            _P,
        ),
    ),
}


@cache
def library() -> Any:
    """Return the library with its functions typed; raise Missing without one of them."""
    module = importlib.import_module("xllamacpp.xllamacpp")
    found = ctypes.CDLL(str(module.__file__))
    for name, (returns, takes) in _FUNCTIONS.items():
        try:
            function = getattr(found, name)
        except AttributeError as error:
            raise Missing(f"The installed xllamacpp does not show {name}.") from error
        function.restype, function.argtypes = returns, takes
    found.llama_backend_init()
    return found


def quantize_rows(kind: int, rows: Any) -> Any:
    """Return float32 ``rows`` [n, width] as bytes [n, bytes of a row] of ggml's type ``kind``.

    The width is a multiple of the type's block. Raises Missing.
    """
    api = library()
    plain = np.ascontiguousarray(rows, np.float32)
    count, width = plain.shape
    room = ctypes.create_string_buffer(plain.nbytes)
    source = plain.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    size = api.ggml_quantize_chunk(kind, source, room, 0, count, width, None)
    return np.frombuffer(room, np.uint8, size).reshape(count, -1).copy()


@contextmanager
def opened(path: Path, longest: int, threads: int) -> Iterator["Context"]:
    """Load a file for rows of up to ``longest`` tokens; raises Missing, RuntimeError."""
    api = library()
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path.name}")
    try:
        params = api.llama_context_default_params()
        params.n_ctx = max(256, longest + 8)
        params.n_batch = params.n_ubatch = _BATCH
        context = api.llama_init_from_model(model, params)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {longest} tokens")
        api.llama_set_n_threads(context, threads, threads)
        try:
            vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
            yield Context(api, context, vocabulary)
        finally:
            api.llama_free(context)
    finally:
        api.llama_model_free(model)


class Context:
    """A loaded model that reads rows of tokens, each from the beginning."""

    def __init__(self, api: Any, context: Any, vocabulary: int) -> None:
        self._api, self._context, self._vocabulary = api, context, vocabulary

    def losses(self, tokens: list[int]) -> Any:
        """Return the negative log probability [len(tokens) − 1] of each token but the first."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        found = []
        for begin in range(0, len(tokens) - 1, _BATCH):
            targets = tokens[begin + 1 : begin + _BATCH + 1]
            found += self._losses(tokens[begin : begin + len(targets)], targets, begin)
        return np.array(found)

    def _losses(self, tokens: list[int], targets: list[int], begin: int) -> list[float]:
        """Read tokens at positions from ``begin``; a row of logits at a time is in memory twice."""
        api = self._api
        batch = api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, begin + i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
            if status := api.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp's llama_decode returned {status}")
            return [self._loss(i, target) for i, target in enumerate(targets)]
        finally:
            api.llama_batch_free(batch)

    def _loss(self, index: int, target: int) -> float:
        told = self._api.llama_get_logits_ith(self._context, index)
        logits = np.ctypeslib.as_array(told, (self._vocabulary,)).astype(np.float64)
        most = logits.max()
        return float(np.log(np.exp(logits - most).sum()) + most - logits[target])
