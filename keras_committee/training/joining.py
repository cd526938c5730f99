"""Do the members train on this machine, or on a Ray cluster?"""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from keras_committee.errors import RecipeError

if TYPE_CHECKING:
    from keras_committee.training.ray import Cluster


@contextlib.contextmanager
def joined(address: str | None, per_member: str | None = None) -> "Iterator[Cluster | None]":
    """The Ray cluster at `address`, joined inside the `with` block, or None where there is no address.

    Args:
        address: As in `ray.Cluster`, or None.
        per_member: What each member asks for: `"cpus=2"`, `"gpus=0.5"` or `"cpus=2,gpus=1"`.

    Raises:
        RecipeError: If Ray is not installed, or an argument is wrong.
        ResourceError: If no cluster answers.
    """
    asked = _asked(per_member)
    if address is None:
        if asked:
            raise RecipeError(f"--per-member {per_member} is what members ask of --ray. Add --ray ADDRESS.")
        yield None
        return
    try:
        from keras_committee.training.ray import Cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise RecipeError("--ray needs the package ray: pip install keras-committee[ray]") from error
    with Cluster(address, **asked) as cluster:
        yield cluster


def _asked(text: str | None) -> dict[str, Any]:
    """`"cpus=2,gpus=0.5"` as `{"cpus": 2, "gpus": 0.5}`."""
    if text is None:
        return {}
    cpus, gpus = r"cpus=[1-9]\d*", r"gpus=(\d+|0?\.\d+)"  # Ray gives whole GPUs, or a part of one
    if not re.fullmatch(f"{cpus}|{gpus}|{cpus},{gpus}", text):
        raise RecipeError(f"--per-member expected cpus=N, gpus=N or cpus=N,gpus=N. Received: '{text}'")
    words = dict(word.split("=") for word in text.split(","))
    return {name: int(number) if name == "cpus" else float(number) for name, number in words.items()}
