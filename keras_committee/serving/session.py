"""How does a SavedModel run as in TF Serving: TensorFlow's own C++ loader and session, no Keras, no Python ops?"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.serving import c_api
from keras_committee.serving.c_api import Library, Output, checked
from keras_committee.serving.signatures import (
    Signature,
    check_inputs,
    choose_outputs,
    find_signature,
    read_signatures,
    type_number,
)
from keras_committee.serving.status import StatusError


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
        lib = c_api.library()
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
        self._running, self._changed, self._closed = 0, threading.Condition(), False
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
        called = find_signature(self.signatures, signature)
        check_inputs(called, inputs)
        names = choose_outputs(called, outputs)
        feeds = [(called.inputs[name].tensor_name, np.asarray(array)) for name, array in inputs.items()]
        fetches = [called.outputs[name] for name in names]
        with self._open():
            arrays = self._run(feeds, [each.tensor_name for each in fetches], [e.numpy_dtype for e in fetches], timeout)
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Waits for the calls that run, then frees the model's memory. A second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.wait_for(lambda: not self._running)
        with checked(self._lib) as status:
            self._lib.TF_CloseSession(self._handle, status)
            self._lib.TF_DeleteSession(self._handle, status)
        self._lib.TF_DeleteGraph(self._graph)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._changed:
            if self._closed:
                raise StatusError("UNAVAILABLE", "the session is closed")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _run(
        self, feeds: list[tuple[str, np.ndarray]], fetches: list[str], dtypes: list[np.dtype], timeout: float | None
    ) -> list[np.ndarray]:
        lib = self._lib
        sources = (Output * len(feeds))(*(self._find(name) for name, _ in feeds))
        targets = (Output * len(fetches))(*(self._find(name) for name in fetches))
        results = (ctypes.c_void_p * len(fetches))()
        with self._fed([array for _, array in feeds]) as tensors, _run_options(lib, timeout) as options:
            try:
                with checked(lib) as status:
                    lib.TF_SessionRun(
                        *(self._handle, options, sources, tensors, len(feeds), targets, results, len(fetches)),
                        *(None, 0, None, status),
                    )
                return [c_api.to_array(lib, each, dtype) for each, dtype in zip(results, dtypes, strict=True)]
            finally:
                for each in filter(None, results):
                    lib.TF_DeleteTensor(each)

    @contextlib.contextmanager
    def _fed(self, arrays: list[np.ndarray]) -> Iterator[Any]:
        tensors: list[int] = []
        try:
            for array in arrays:
                tensors.append(c_api.new_tensor(self._lib, array, type_number(array)))
            yield (ctypes.c_void_p * len(tensors))(*tensors)
        finally:
            for each in tensors:
                self._lib.TF_DeleteTensor(each)

    def _find(self, tensor_name: str) -> Output:
        name, _, index = tensor_name.partition(":")
        operation = self._lib.TF_GraphOperationByName(self._graph, name.encode())
        if not operation:
            raise StatusError("NOT_FOUND", f"Tensor {tensor_name}, specified in a signature, is not in the graph")
        return Output(operation, int(index or 0))


def _load(lib: Library, graph: int, folder: Path) -> tuple[int, bytes]:
    options, meta_graph = lib.TF_NewSessionOptions(), lib.TF_NewBuffer()
    tags = (ctypes.c_char_p * 1)(b"serve")
    try:
        with checked(lib) as status:
            place = os.fsencode(folder)
            handle = lib.TF_LoadSessionFromSavedModel(options, None, place, tags, 1, graph, meta_graph, status)
        return handle, c_api.buffer_bytes(meta_graph)
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
