"""Can a stock TF Serving run this SavedModel? Operations that its binary lacks or refuses are named."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_committee.errors import ExportError

# What a server cannot or must not run, and why.
_REFUSED = {
    "PyFunc": "Python runs only in the process that exported it",
    "PyFuncStateless": "Python runs only in the process that exported it",
    "EagerPyFunc": "Python runs only in the process that exported it",
    "XlaCallModule": "XLA is off in the server",
    "XlaLaunch": "XLA is off in the server",
    "ReadFile": "a request could read the server's files",
    "WriteFile": "a request could write the server's files",
    "Print": "requests would be printed to the server's log",
    "PrintV2": "requests would be printed to the server's log",
}


def check_operations(folder: Path) -> None:
    """Raises ExportError, which names every problem, unless a stock server can run the SavedModel in `folder`."""
    problems = sorted(set(find_problems(read_saved_model(folder))))
    if problems:
        listing = "\n  ".join(problems)
        raise ExportError(f"TF Serving could not run this model. Nothing was published.\n  {listing}")


def read_saved_model(folder: Path) -> Any:
    """The SavedModel message of `folder`."""
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def find_problems(saved_model: Any) -> Iterator[str]:
    """One sentence for each thing that a stock TF Serving would not run."""
    tags = [sorted(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    if tags != [["serve"]]:
        yield f"it must have one graph, with the tag serve; it has {tags}"
    for graph in saved_model.meta_graphs:
        functions = graph.graph_def.library.function
        nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
        names = {function.signature.name for function in functions}
        for each in [*functions, *nodes]:
            if "_XlaMustCompile" in each.attr and each.attr["_XlaMustCompile"].b:
                yield "a function with jit_compile=True: XLA is off in the server"
        for node in nodes:
            yield from _node_problems(node)
        for op in sorted({node.op for node in nodes} - names - set(_REFUSED)):
            if not _has_cpu_kernel(op):
                yield f"{op}: there is no such operation for a CPU in TensorFlow itself"


def _node_problems(node):
    if re.search(r"(GPU|TPU|XLA)", node.device, re.IGNORECASE):
        yield f"{node.name} is pinned to {node.device}"
    if node.op in _REFUSED:
        yield f"{node.op}: {_REFUSED[node.op]}"
    if "data_format" in node.attr and node.attr["data_format"].s.startswith(b"NC"):
        yield f"{node.op} with channels first has no kernel on a CPU"


def _has_cpu_kernel(op):
    from tensorflow.python.framework import (  # pyright: ignore[reportAttributeAccessIssue]
        kernels,
        op_def_registry,
    )

    if op_def_registry.get(op) is None:
        return False
    if op in ("Placeholder", "PlaceholderWithDefault", "_Arg", "_Retval"):
        return True
    devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}
    return bool(devices & {"CPU", "DEFAULT"})
