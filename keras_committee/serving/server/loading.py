"""May this version be served: is it what it seems, does it load, and does it answer its warm-up requests?"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from keras_committee.serving.server.warmup import replay
from keras_committee.tfserving.python_session import load_session
from keras_committee.tfserving.tf_protocol import StatusError


def load_version(folder: Path) -> Any:
    """A session of the SavedModel in `folder`, which has answered its warm-up requests.

    Raises:
        StatusError: What is wrong with it.
    """
    refuse_links(folder)
    session = load_session(folder)
    try:
        refuse_xla(session.meta_graph)
        replay(session, folder)
    except BaseException:
        session.close()
        raise
    return session


def refuse_links(folder: Path) -> None:
    """Raises FAILED_PRECONDITION where `folder` or anything in it is a symbolic link: it may lead anywhere."""
    inside = (Path(place, name) for place, folders, files in os.walk(folder) for name in folders + files)
    for path in [folder, *inside]:
        if path.is_symlink():
            raise StatusError("FAILED_PRECONDITION", f"{path} is a symbolic link; a version must hold its own files")


def refuse_xla(meta_graph: Any) -> None:
    """Raises INTERNAL where a function must be compiled: TF Serving has XLA switched off, and each request fails."""
    for attributes in _attributes(meta_graph.graph_def):
        if "_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b:
            raise StatusError(
                "INTERNAL",
                "XLA compilation disabled: a function of this model was traced with jit_compile=True",
            )


def _attributes(graph: Any) -> Iterator[Any]:
    yield from _of_nodes(graph.node)
    for function in graph.library.function:
        yield function.attr
        yield from _of_nodes(function.node_def)


def _of_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    return (node.attr for node in nodes)
