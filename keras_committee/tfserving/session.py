"""TensorFlow's C++ loader and session, through its C API.

A SavedModel runs as in TF Serving: without Keras and without Python operations.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.tfserving.tf_protocol import (
    CODES,
    Signature,
    StatusError,
    check_inputs,
    check_rank,
    choose_outputs,
    datatype_enum,
    find_signature,
    read_signatures,
)

_DT_STRING = 7
_SET_MIN_LOG_LEVEL = "_ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE"
_VOID_P, _CHAR_P, _INT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_TSTRING_BYTES = 24  # size of a TF_TString

# C functions by name, with the types of their result and arguments. The first group may take long and releases the GIL.
_GIL_RELEASED = {
    "TF_LoadSessionFromSavedModel": (
        _VOID_P,
        [_VOID_P, _VOID_P, _CHAR_P, ctypes.POINTER(_CHAR_P), _INT, _VOID_P, _VOID_P, _VOID_P],
    ),
    "TF_SessionRun": (
        None,
        [_VOID_P, _VOID_P, _VOID_P, _VOID_P, _INT, _VOID_P, _VOID_P, _INT, _VOID_P, _INT, _VOID_P, _VOID_P],
    ),
    "TF_CloseSession": (None, [_VOID_P, _VOID_P]),
    "TF_DeleteSession": (None, [_VOID_P, _VOID_P]),
    "TF_DeleteGraph": (None, [_VOID_P]),
}
_GIL_HELD = {
    "TF_NewStatus": (_VOID_P, []),
    "TF_DeleteStatus": (None, [_VOID_P]),
    "TF_GetCode": (_INT, [_VOID_P]),
    "TF_Message": (_CHAR_P, [_VOID_P]),
    "TF_NewBuffer": (_VOID_P, []),
    "TF_NewBufferFromString": (_VOID_P, [_CHAR_P, _SIZE]),
    "TF_DeleteBuffer": (None, [_VOID_P]),
    "TF_NewGraph": (_VOID_P, []),
    "TF_GraphOperationByName": (_VOID_P, [_VOID_P, _CHAR_P]),
    "TF_NewSessionOptions": (_VOID_P, []),
    "TF_DeleteSessionOptions": (None, [_VOID_P]),
    "TF_AllocateTensor": (_VOID_P, [_INT, ctypes.POINTER(ctypes.c_int64), _INT, _SIZE]),
    "TF_DeleteTensor": (None, [_VOID_P]),
    "TF_TensorData": (_VOID_P, [_VOID_P]),
    "TF_TensorByteSize": (_SIZE, [_VOID_P]),
    "TF_TensorType": (_INT, [_VOID_P]),
    "TF_NumDims": (_INT, [_VOID_P]),
    "TF_Dim": (ctypes.c_int64, [_VOID_P, _INT]),
    "TF_StringInit": (None, [_VOID_P]),
    "TF_StringCopy": (None, [_VOID_P, _CHAR_P, _SIZE]),
    "TF_StringGetDataPointer": (_VOID_P, [_VOID_P]),
    "TF_StringGetSize": (_SIZE, [_VOID_P]),
}


class Session:
    """A loaded SavedModel. Threads may call `run` concurrently; `close` waits for running calls.

    Attributes:
        signatures: `Signature` by name.
        meta_graph: The MetaGraphDef as saved, with its SignatureDefs and operation names.
    """

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Session":
        """Load the SavedModel in `folder` with the tag "serve".

        Raises:
            StatusError: If TensorFlow cannot load it, with TensorFlow's message.
            ImportError: If this TensorFlow has no C API.
        """
        lib = load_library()
        graph = lib.TF_NewGraph()
        try:
            handle, content = _load(lib, graph, Path(folder))
        except BaseException:
            lib.TF_DeleteGraph(graph)
            raise
        return cls(lib, handle, graph, content)

    def __init__(self, lib: "Library", handle: int, graph: int, meta_graph: bytes):
        from tensorflow.core.protobuf import meta_graph_pb2

        self._lib, self._handle, self._graph = lib, handle, graph
        self._active_calls, self._condition, self._closed = 0, threading.Condition(), False
        self.meta_graph: Any = meta_graph_pb2.MetaGraphDef.FromString(meta_graph)
        self.signatures: dict[str, Signature] = read_signatures(self.meta_graph)

    def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Run one signature.

        Args:
            signature: Name of the signature; "" is "serving_default".
            inputs: Arrays by input name; strings are object arrays of bytes. Nothing is cast: as in TF Serving, a dtype
                that the graph does not expect is an error.
            outputs: Names of the outputs to return; all if None or empty.
            timeout: Maximum time in seconds; then DEADLINE_EXCEEDED.

        Returns:
            Arrays by output name.

        Raises:
            StatusError: If the call fails, with the message of TF Serving or TensorFlow.
        """
        spec = find_signature(self.signatures, signature)
        check_inputs(spec, inputs)
        names = choose_outputs(spec.outputs, outputs)
        feeds = [(spec.inputs[name].tensor_name, np.asarray(array)) for name, array in inputs.items()]
        infos = [spec.outputs[name] for name in names]
        with self._in_use():
            arrays = self._run(
                feeds, [info.tensor_name for info in infos], [info.numpy_dtype for info in infos], timeout
            )
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Wait for running calls, then free the model. Closing twice has no effect."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            self._condition.wait_for(lambda: not self._active_calls)
        with _raise_on_status(self._lib) as status:
            self._lib.TF_CloseSession(self._handle, status)
            self._lib.TF_DeleteSession(self._handle, status)
        self._lib.TF_DeleteGraph(self._graph)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._condition:
            if self._closed:
                raise StatusError("UNAVAILABLE", "the session is closed")
            self._active_calls += 1
        try:
            yield
        finally:
            with self._condition:
                self._active_calls -= 1
                self._condition.notify_all()

    def _run(
        self, feeds: list[tuple[str, np.ndarray]], fetches: list[str], dtypes: list[np.dtype], timeout: float | None
    ) -> list[np.ndarray]:
        lib = self._lib
        sources = (_TFOutput * len(feeds))(*(self._find_output(name) for name, _ in feeds))
        targets = (_TFOutput * len(fetches))(*(self._find_output(name) for name in fetches))
        results = (ctypes.c_void_p * len(fetches))()
        with self._input_tensors([array for _, array in feeds]) as tensors, _run_options(lib, timeout) as options:
            try:
                with _raise_on_status(lib) as status:
                    lib.TF_SessionRun(
                        *(self._handle, options, sources, tensors, len(feeds), targets, results, len(fetches)),
                        *(None, 0, None, status),
                    )
                return [_tensor_to_array(lib, tensor, dtype) for tensor, dtype in zip(results, dtypes, strict=True)]
            finally:
                for tensor in filter(None, results):
                    lib.TF_DeleteTensor(tensor)

    @contextlib.contextmanager
    def _input_tensors(self, arrays: list[np.ndarray]) -> Iterator[Any]:
        tensors: list[int] = []
        try:
            for array in arrays:
                tensors.append(_new_tensor(self._lib, array, datatype_enum(array)))
            yield (ctypes.c_void_p * len(tensors))(*tensors)
        finally:
            for tensor in tensors:
                self._lib.TF_DeleteTensor(tensor)

    def _find_output(self, tensor_name: str) -> "_TFOutput":
        name, _, index = tensor_name.partition(":")
        operation = self._lib.TF_GraphOperationByName(self._graph, name.encode())
        if not operation:
            raise StatusError("NOT_FOUND", f"Tensor {tensor_name}, specified in a signature, is not in the graph")
        return _TFOutput(operation, int(index or 0))


class Library:
    """The C functions of the installed TensorFlow, as attributes named as in c_api.h."""

    def __init__(self, path: Path):
        # Not RTLD_GLOBAL: TensorFlow's BoringSSL would replace OpenSSL, and `import hashlib` would crash.
        gil_releasing, gil_holding = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        for library, functions in ((gil_releasing, _GIL_RELEASED), (gil_holding, _GIL_HELD)):
            for name, (result, arguments) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        _apply_log_level(gil_releasing)

    def __getattr__(self, name: str) -> Any:  # for type checkers: every function is set above
        raise AttributeError(f"{name} is not one of the loaded C functions")


def _apply_log_level(library: ctypes.CDLL) -> None:
    """Let TensorFlow's C++ log follow TF_CPP_MIN_LOG_LEVEL, which has no effect on messages that Abseil writes."""
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")
    with contextlib.suppress(AttributeError):  # the name has the version of Abseil
        if level.isdecimal():
            getattr(library, _SET_MIN_LOG_LEVEL)(int(level))


@functools.cache
def load_library() -> Library:
    """Return the library, loaded once. Raises ImportError if this build of TensorFlow has no C API."""
    path = find_library()
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} lacks functions of the C API: {error}") from error


def find_library() -> Path:
    """Return the path of the library with the C API. Raises ImportError if there is none."""
    spec = importlib.util.find_spec("tensorflow")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for path in (Path(folder) / "libtensorflow_cc.so.2" for folder in folders):
        if path.exists():
            return path
    raise ImportError("this TensorFlow has no C API: libtensorflow_cc.so.2 is missing")


class _TFOutput(ctypes.Structure):
    """TF_Output: one output of an operation of the graph."""

    _fields_ = (("operation", _VOID_P), ("index", _INT))


class _TFBuffer(ctypes.Structure):
    _fields_ = (("data", _VOID_P), ("length", _SIZE), ("deallocator", _VOID_P))


def _load(lib: Library, graph: int, folder: Path) -> tuple[int, bytes]:
    """Load the SavedModel into `graph`; return the handle of its session and the serialized MetaGraphDef."""
    options, meta_graph = lib.TF_NewSessionOptions(), lib.TF_NewBuffer()
    tags = (ctypes.c_char_p * 1)(b"serve")
    try:
        with _raise_on_status(lib) as status:
            encoded_path = os.fsencode(folder)
            handle = lib.TF_LoadSessionFromSavedModel(options, None, encoded_path, tags, 1, graph, meta_graph, status)
        buffer = _TFBuffer.from_address(meta_graph)
        return handle, ctypes.string_at(buffer.data, buffer.length) if buffer.length else b""
    finally:
        lib.TF_DeleteSessionOptions(options)
        lib.TF_DeleteBuffer(meta_graph)


@contextlib.contextmanager
def _raise_on_status(lib: Library) -> Iterator[int]:
    """Provide a TF_Status for the calls inside, and raise StatusError with TensorFlow's text if it is not OK."""
    status = lib.TF_NewStatus()
    try:
        yield status
        if code := lib.TF_GetCode(status):
            raise StatusError(CODES[code], lib.TF_Message(status).decode(errors="replace"))
    finally:
        lib.TF_DeleteStatus(status)


@contextlib.contextmanager
def _run_options(lib: Library, timeout: float | None) -> Iterator[int | None]:
    """Provide a TF_Buffer with RunOptions, or None for the default."""
    if timeout is None:
        yield None
        return
    from tensorflow.core.protobuf import config_pb2

    content = config_pb2.RunOptions(timeout_in_ms=max(1, round(timeout * 1000))).SerializeToString()
    buffer = lib.TF_NewBufferFromString(content, len(content))
    try:
        yield buffer
    finally:
        lib.TF_DeleteBuffer(buffer)


def _new_tensor(lib: Library, array: np.ndarray, dtype: int) -> int:
    """Return a TF_Tensor with a copy of `array`. `dtype` is its DataType. TF_DeleteTensor also frees strings."""
    if dtype == _DT_STRING:
        return _new_string_tensor(lib, array)
    array = np.ascontiguousarray(array).reshape(array.shape)
    tensor = lib.TF_AllocateTensor(dtype, _dims(array), array.ndim, array.nbytes)
    ctypes.memmove(lib.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
    return tensor


def _new_string_tensor(lib: Library, array: np.ndarray) -> int:
    contents = [_encode(value) for value in array.ravel()]
    tensor = lib.TF_AllocateTensor(_DT_STRING, _dims(array), array.ndim, _TSTRING_BYTES * len(contents))
    for address, content in zip(_string_addresses(lib, tensor), contents, strict=True):
        lib.TF_StringInit(address)
        lib.TF_StringCopy(address, content, len(content))
    return tensor


def _tensor_to_array(lib: Library, tensor: int, dtype: np.dtype) -> np.ndarray:
    """Return a copy of `tensor` as an array of `dtype`, or as an object array of bytes for strings."""
    check_rank(rank := lib.TF_NumDims(tensor))
    shape = tuple(lib.TF_Dim(tensor, axis) for axis in range(rank))
    if lib.TF_TensorType(tensor) == _DT_STRING:
        return _read_strings(lib, tensor).reshape(shape)
    content = ctypes.string_at(lib.TF_TensorData(tensor), lib.TF_TensorByteSize(tensor)) if np.prod(shape) else b""
    return np.frombuffer(bytearray(content), dtype).reshape(shape)


def _read_strings(lib: Library, tensor: int) -> np.ndarray:
    addresses = _string_addresses(lib, tensor)
    strings = np.empty(len(addresses), object)
    for index, address in enumerate(addresses):
        strings[index] = ctypes.string_at(lib.TF_StringGetDataPointer(address), lib.TF_StringGetSize(address))
    return strings


def _dims(array: np.ndarray) -> Any:
    return (ctypes.c_int64 * array.ndim)(*array.shape)


def _encode(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise StatusError("INVALID_ARGUMENT", f"a string tensor holds bytes, but received {type(value).__name__}")


def _string_addresses(lib: Library, tensor: int) -> range:
    start, size = lib.TF_TensorData(tensor) or 0, lib.TF_TensorByteSize(tensor)
    return range(start, start + size, _TSTRING_BYTES)
