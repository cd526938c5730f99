"""How are TensorFlow's C functions called, and how do NumPy arrays go there and back?"""

import contextlib
import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.serving.status import CODES, StatusError

STRING = 7  # DT_STRING
_P, _CHARS, _INT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_TSTRING = 24  # bytes of a TF_TString
_LOOSE = {  # name: (result, arguments); these may take long, and let other threads of Python run
    "TF_LoadSessionFromSavedModel": (_P, [_P, _P, _CHARS, ctypes.POINTER(_CHARS), _INT, _P, _P, _P]),
    "TF_SessionRun": (None, [_P, _P, _P, _P, _INT, _P, _P, _INT, _P, _INT, _P, _P]),
    "TF_CloseSession": (None, [_P, _P]),
    "TF_DeleteSession": (None, [_P, _P]),
    "TF_DeleteGraph": (None, [_P]),
}
_QUICK = {
    "TF_NewStatus": (_P, []),
    "TF_DeleteStatus": (None, [_P]),
    "TF_GetCode": (_INT, [_P]),
    "TF_Message": (_CHARS, [_P]),
    "TF_NewBuffer": (_P, []),
    "TF_NewBufferFromString": (_P, [_CHARS, _SIZE]),
    "TF_DeleteBuffer": (None, [_P]),
    "TF_NewGraph": (_P, []),
    "TF_GraphOperationByName": (_P, [_P, _CHARS]),
    "TF_NewSessionOptions": (_P, []),
    "TF_DeleteSessionOptions": (None, [_P]),
    "TF_AllocateTensor": (_P, [_INT, ctypes.POINTER(ctypes.c_int64), _INT, _SIZE]),
    "TF_DeleteTensor": (None, [_P]),
    "TF_TensorData": (_P, [_P]),
    "TF_TensorByteSize": (_SIZE, [_P]),
    "TF_TensorType": (_INT, [_P]),
    "TF_NumDims": (_INT, [_P]),
    "TF_Dim": (ctypes.c_int64, [_P, _INT]),
    "TF_StringInit": (None, [_P]),
    "TF_StringCopy": (None, [_P, _CHARS, _SIZE]),
    "TF_StringGetDataPointer": (_P, [_P]),
    "TF_StringGetSize": (_SIZE, [_P]),
}


class Output(ctypes.Structure):
    """TF_Output: one output of an operation of the graph."""

    _fields_ = (("operation", _P), ("index", _INT))


class _Buffer(ctypes.Structure):
    _fields_ = (("data", _P), ("length", _SIZE), ("deallocator", _P))


class Library:
    """The C functions of the TensorFlow that is installed, as attributes named as in c_api.h."""

    def __init__(self, path: Path):
        # Not RTLD_GLOBAL: its BoringSSL would take the place of OpenSSL, and `import hashlib` would crash.
        loose, quick = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        for library, functions in ((loose, _LOOSE), (quick, _QUICK)):
            for name, (result, arguments) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # for those who check types: each is set above
        raise AttributeError(f"{name} is not among the C functions that were loaded")


@functools.cache
def library() -> Library:
    """The library, loaded once. Raises ImportError where TensorFlow has no C API, as some builds of it."""
    path = find_library()
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} has not the C API that was wanted: {error}") from error


def find_library() -> Path:
    """Where the library of the C API lies. Raises ImportError."""
    found = importlib.util.find_spec("tensorflow")
    folders = list(found.submodule_search_locations or []) if found else []
    for path in (Path(folder) / "libtensorflow_cc.so.2" for folder in folders):
        if path.exists():
            return path
    raise ImportError("this TensorFlow has no libtensorflow_cc.so.2, the library of its C API")


@contextlib.contextmanager
def checked(lib: Library) -> Iterator[int]:
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
    content = _Buffer.from_address(buffer)
    return ctypes.string_at(content.data, content.length) if content.length else b""


def new_tensor(lib: Library, array: np.ndarray, dtype: int) -> int:
    """A TF_Tensor with a copy of `array`; `dtype` is its DataType. TF_DeleteTensor frees strings, too."""
    if dtype == STRING:
        return _new_strings(lib, array)
    array = np.ascontiguousarray(array).reshape(array.shape)
    tensor = lib.TF_AllocateTensor(dtype, _dims(array), array.ndim, array.nbytes)
    ctypes.memmove(lib.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
    return tensor


def to_array(lib: Library, tensor: int, dtype: np.dtype) -> np.ndarray:
    """A copy of what `tensor` holds: of `dtype`, or an object array of bytes for strings."""
    shape = tuple(lib.TF_Dim(tensor, axis) for axis in range(lib.TF_NumDims(tensor)))
    if lib.TF_TensorType(tensor) == STRING:
        return _strings(lib, tensor).reshape(shape)
    content = ctypes.string_at(lib.TF_TensorData(tensor), lib.TF_TensorByteSize(tensor)) if np.prod(shape) else b""
    return np.frombuffer(bytearray(content), dtype).reshape(shape)


def _dims(array: np.ndarray) -> Any:
    return (ctypes.c_int64 * array.ndim)(*array.shape)


def _new_strings(lib: Library, array: np.ndarray) -> int:
    contents = [_encoded(each) for each in array.ravel()]
    tensor = lib.TF_AllocateTensor(STRING, _dims(array), array.ndim, _TSTRING * len(contents))
    for address, content in zip(_addresses(lib, tensor), contents, strict=True):
        lib.TF_StringInit(address)
        lib.TF_StringCopy(address, content, len(content))
    return tensor


def _encoded(each: Any) -> bytes:
    if isinstance(each, str):
        return each.encode()
    if isinstance(each, bytes):
        return each
    raise StatusError("INVALID_ARGUMENT", f"a string tensor holds bytes, but received {type(each).__name__}")


def _addresses(lib: Library, tensor: int) -> range:
    start, size = lib.TF_TensorData(tensor) or 0, lib.TF_TensorByteSize(tensor)
    return range(start, start + size, _TSTRING)


def _strings(lib: Library, tensor: int) -> np.ndarray:
    addresses = _addresses(lib, tensor)
    result = np.empty(len(addresses), object)
    for i, address in enumerate(addresses):
        result[i] = ctypes.string_at(lib.TF_StringGetDataPointer(address), lib.TF_StringGetSize(address))
    return result
