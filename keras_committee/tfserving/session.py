"""How does a SavedModel run as in TF Serving: TensorFlow's own C++ loader and session, no Keras, no Python ops?"""

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
    choose_outputs,
    datatype_enum,
    find_signature,
    read_signatures,
)

DT_STRING = 7  # DT_STRING
_VOID_P, _CHAR_P, _INT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_TSTRING_BYTES = 24  # bytes of a TF_TString
_GIL_RELEASED = {  # name: (result, arguments); these may take long, and let other threads of Python run
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


class TFOutput(ctypes.Structure):
    """TF_Output: one output of an operation of the graph."""

    _fields_ = (("operation", _VOID_P), ("index", _INT))


class _TFBuffer(ctypes.Structure):
    _fields_ = (("data", _VOID_P), ("length", _SIZE), ("deallocator", _VOID_P))


class Library:
    """The C functions of the TensorFlow that is installed, as attributes named as in c_api.h."""

    def __init__(self, path: Path):
        # Not RTLD_GLOBAL: its BoringSSL would take the place of OpenSSL, and `import hashlib` would crash.
        gil_releasing, gil_holding = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        for library, functions in ((gil_releasing, _GIL_RELEASED), (gil_holding, _GIL_HELD)):
            for name, (result, arguments) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # for those who check types: each is set above
        raise AttributeError(f"{name} is not among the C functions that were loaded")


@functools.cache
def load_library() -> Library:
    """The library, loaded once. Raises ImportError where TensorFlow has no C API, as some builds of it."""
    path = find_library()
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} has not the C API that was wanted: {error}") from error


def find_library() -> Path:
    """Where the library of the C API lies. Raises ImportError."""
    spec = importlib.util.find_spec("tensorflow")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for path in (Path(folder) / "libtensorflow_cc.so.2" for folder in folders):
        if path.exists():
            return path
    raise ImportError("this TensorFlow has no libtensorflow_cc.so.2, the library of its C API")


@contextlib.contextmanager
def raise_on_status(lib: Library) -> Iterator[int]:
    """A TF_Status for the calls inside; where it is not OK afterwards, raises StatusError with TensorFlow's text."""
    status = lib.TF_NewStatus()
    try:
        yield status
        if code := lib.TF_GetCode(status):
            raise StatusError(CODES[code], lib.TF_Message(status).decode(errors="replace"))
    finally:
        lib.TF_DeleteStatus(status)


def buffer_bytes(buffer: int) -> bytes:
    """What a TF_Buffer holds."""
    content = _TFBuffer.from_address(buffer)
    return ctypes.string_at(content.data, content.length) if content.length else b""


def new_tensor(lib: Library, array: np.ndarray, dtype: int) -> int:
    """A TF_Tensor with a copy of `array`; `dtype` is its DataType. TF_DeleteTensor frees strings, too."""
    if dtype == DT_STRING:
        return _new_string_tensor(lib, array)
    array = np.ascontiguousarray(array).reshape(array.shape)
    tensor = lib.TF_AllocateTensor(dtype, _dims(array), array.ndim, array.nbytes)
    ctypes.memmove(lib.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
    return tensor


def tensor_to_array(lib: Library, tensor: int, dtype: np.dtype) -> np.ndarray:
    """A copy of what `tensor` holds: of `dtype`, or an object array of bytes for strings."""
    shape = tuple(lib.TF_Dim(tensor, axis) for axis in range(lib.TF_NumDims(tensor)))
    if lib.TF_TensorType(tensor) == DT_STRING:
        return _read_strings(lib, tensor).reshape(shape)
    content = ctypes.string_at(lib.TF_TensorData(tensor), lib.TF_TensorByteSize(tensor)) if np.prod(shape) else b""
    return np.frombuffer(bytearray(content), dtype).reshape(shape)


def _dims(array: np.ndarray) -> Any:
    return (ctypes.c_int64 * array.ndim)(*array.shape)


def _new_string_tensor(lib: Library, array: np.ndarray) -> int:
    contents = [_encode(value) for value in array.ravel()]
    tensor = lib.TF_AllocateTensor(DT_STRING, _dims(array), array.ndim, _TSTRING_BYTES * len(contents))
    for address, content in zip(_string_addresses(lib, tensor), contents, strict=True):
        lib.TF_StringInit(address)
        lib.TF_StringCopy(address, content, len(content))
    return tensor


def _encode(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise StatusError("INVALID_ARGUMENT", f"a string tensor holds bytes, but received {type(value).__name__}")


def _string_addresses(lib: Library, tensor: int) -> range:
    start, size = lib.TF_TensorData(tensor) or 0, lib.TF_TensorByteSize(tensor)
    return range(start, start + size, _TSTRING_BYTES)


def _read_strings(lib: Library, tensor: int) -> np.ndarray:
    addresses = _string_addresses(lib, tensor)
    result = np.empty(len(addresses), object)
    for i, address in enumerate(addresses):
        result[i] = ctypes.string_at(lib.TF_StringGetDataPointer(address), lib.TF_StringGetSize(address))
    return result


class Session:
    """A loaded SavedModel. Any number of threads may call `run` at once; `close` waits for them.

    Attributes:
        signatures: dict of name -> `Signature`.
        meta_graph: The MetaGraphDef with its SignatureDefs and op names, as it was saved.
    """

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Session":
        """Loads the SavedModel in `folder` with the tag "serve".

        Raises:
            StatusError: What TensorFlow's loader says.
            ImportError: Where this TensorFlow has no C API.
        """
        lib = load_library()
        graph = lib.TF_NewGraph()
        try:
            handle, content = _load(lib, graph, Path(folder))
        except BaseException:
            lib.TF_DeleteGraph(graph)
            raise
        return cls(lib, handle, graph, content)

    def __init__(self, lib: Library, handle: int, graph: int, meta_graph: bytes):
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
        """Runs one signature.

        Args:
            signature: Its name; "" is "serving_default".
            inputs: Arrays by input name. Strings are object arrays of bytes. Nothing is cast: a dtype that the graph
                does not expect is refused, as TF Serving does.
            outputs: Names of outputs; all where None or empty.
            timeout: Seconds, then DEADLINE_EXCEEDED.

        Returns:
            dict of output name -> array.

        Raises:
            StatusError: In TF Serving's and TensorFlow's words.
        """
        spec = find_signature(self.signatures, signature)
        check_inputs(spec, inputs)
        names = choose_outputs(spec, outputs)
        feeds = [(spec.inputs[name].tensor_name, np.asarray(array)) for name, array in inputs.items()]
        fetches = [spec.outputs[name] for name in names]
        with self._in_use():
            arrays = self._run(
                feeds, [fetch.tensor_name for fetch in fetches], [e.numpy_dtype for e in fetches], timeout
            )
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Waits for the calls that run, then frees the model's memory. A second call does nothing."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            self._condition.wait_for(lambda: not self._active_calls)
        with raise_on_status(self._lib) as status:
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
        sources = (TFOutput * len(feeds))(*(self._find_output(name) for name, _ in feeds))
        targets = (TFOutput * len(fetches))(*(self._find_output(name) for name in fetches))
        results = (ctypes.c_void_p * len(fetches))()
        with self._input_tensors([array for _, array in feeds]) as tensors, _run_options(lib, timeout) as options:
            try:
                with raise_on_status(lib) as status:
                    lib.TF_SessionRun(
                        *(self._handle, options, sources, tensors, len(feeds), targets, results, len(fetches)),
                        *(None, 0, None, status),
                    )
                return [tensor_to_array(lib, tensor, dtype) for tensor, dtype in zip(results, dtypes, strict=True)]
            finally:
                for each in filter(None, results):
                    lib.TF_DeleteTensor(each)

    @contextlib.contextmanager
    def _input_tensors(self, arrays: list[np.ndarray]) -> Iterator[Any]:
        tensors: list[int] = []
        try:
            for array in arrays:
                tensors.append(new_tensor(self._lib, array, datatype_enum(array)))
            yield (ctypes.c_void_p * len(tensors))(*tensors)
        finally:
            for tensor in tensors:
                self._lib.TF_DeleteTensor(tensor)

    def _find_output(self, tensor_name: str) -> TFOutput:
        name, _, index = tensor_name.partition(":")
        operation = self._lib.TF_GraphOperationByName(self._graph, name.encode())
        if not operation:
            raise StatusError("NOT_FOUND", f"Tensor {tensor_name}, specified in a signature, is not in the graph")
        return TFOutput(operation, int(index or 0))


def _load(lib: Library, graph: int, folder: Path) -> tuple[int, bytes]:
    options, meta_graph = lib.TF_NewSessionOptions(), lib.TF_NewBuffer()
    tags = (ctypes.c_char_p * 1)(b"serve")
    try:
        with raise_on_status(lib) as status:
            encoded_path = os.fsencode(folder)
            handle = lib.TF_LoadSessionFromSavedModel(options, None, encoded_path, tags, 1, graph, meta_graph, status)
        return handle, buffer_bytes(meta_graph)
    finally:
        lib.TF_DeleteSessionOptions(options)
        lib.TF_DeleteBuffer(meta_graph)


@contextlib.contextmanager
def _run_options(lib: Library, timeout: float | None) -> Iterator[int | None]:
    """A TF_Buffer with RunOptions, or None, which is the default."""
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
