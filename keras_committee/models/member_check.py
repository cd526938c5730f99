"""Check of an untrained member: later commands must be able to load, count and export what training saves."""

import contextlib
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import keras
import numpy as np

from keras_committee import flops
from keras_committee.errors import RecipeError, ResourceError, error_chain
from keras_committee.files import translate_os_errors
from keras_committee.models.loading import find_code, load_member
from keras_committee.models.outputs import noise_images, predict_rows

_OWN_LAYERS_HINT = (
    "Register each class and function of your own at module level of the recipe, with\n"
    "  @keras.saving.register_keras_serializable(), and return all its arguments from `get_config`. Replace a Lambda\n"
    "  by operations of keras.ops or a registered layer. See docs/guides/own-layers.md."
)
_EXPORT_HINT = "Replace the layer, for example by operations of keras.ops. See docs/guides/own-layers.md."
_ALWAYS_REGISTERED = "keras_committee>"  # every command imports all classes of this package
_TOLERANCE = 1e-3  # of the largest output; a GPU may round differently from call to call


class MemberCheck:
    """Saves, loads, counts and traces untrained members, as later commands do, before hours of training are spent.

    Members of the same architecture are checked once. Loading a model draws random numbers: seed them afterwards.

    Args:
        check_exportable: Function of the loaded model, which it may change; raises an error if the model cannot be
            exported. None skips this step.
        unrelated_errors: Errors of a lack of memory, which pass unchanged.
    """

    def __init__(
        self,
        check_exportable: Callable[[keras.Model], None] | None = None,
        unrelated_errors: tuple[type[Exception], ...] = (),
    ):
        self._check_exportable = check_exportable
        self._unrelated_errors = (ResourceError, *unrelated_errors)
        self._checked: set[tuple[str, frozenset[str]]] = set()  # architectures, and names registered while building

    def __call__(self, model: keras.Model, index: int, registered: Collection[str]) -> None:
        """Check a member.

        Args:
            model: The member, just built.
            index: Index of the member.
            registered: The result of `registered_names()` before the member was built. Later commands execute the
                recipe but do not build members: what is registered while one is built is unknown to them.

        Raises:
            RecipeError: If a later command would refuse the member.
            ResourceError: If the disk is full.
        """
        name = f"member {index} ({model.name})"
        with self._refuse(f"{name} cannot be saved", _OWN_LAYERS_HINT), _without_warnings():
            config = model.to_json()
        # Automatic names differ between members: conv2d_7, conv2d_16.
        architecture = re.sub(r'_\d+"', '"', config), registered_names() - frozenset(registered)
        if architecture in self._checked:
            return
        with self._refuse(f"{name} cannot be loaded after training", _OWN_LAYERS_HINT), _only_registered(registered):
            if code := find_code(json.loads(config)):
                raise ValueError(f"its file would contain code, in {', '.join(code)}")
            loaded = _save_and_load(model)
        with self._refuse(f"{name} changes when it is saved and loaded", _OWN_LAYERS_HINT):
            _check_same_outputs(model, loaded)
        with self._refuse(f"the multiply-adds of {name} cannot be counted", "Correct `multiply_adds` of its layers."):
            flops.count(loaded)
        if self._check_exportable is not None:
            with self._refuse(f"{name} cannot be exported", _EXPORT_HINT):
                self._check_exportable(loaded)
        self._checked.add(architecture)

    @contextlib.contextmanager
    def _refuse(self, problem: str, hint: str) -> Iterator[None]:
        """Raise `RecipeError` in place of any error of the block, but for a lack of memory or disk space."""
        try:
            yield
        except self._unrelated_errors:
            raise
        except Exception as error:
            raise RecipeError(f"{problem}: {_first_cause(error)}\n  No step was trained. {hint}") from error


def registered_names() -> frozenset[str]:
    """Return the names of all classes and functions that are registered with Keras."""
    return frozenset(keras.saving.get_custom_objects())


def _first_cause(error: BaseException) -> str:
    """Return the reason behind a chain of errors: Keras names the class or function in the first of several."""
    *_, error = error_chain(error)
    return str(error).strip().split("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _only_registered(names: Collection[str]) -> Iterator[None]:
    """Forget all registered classes and functions but those of `names`, for the block."""
    objects = keras.saving.get_custom_objects()
    later = [name for name in objects if name not in names and not name.startswith(_ALWAYS_REGISTERED)]
    forgotten = {name: objects.pop(name) for name in later}
    try:
        yield
    finally:
        objects.update(forgotten)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore the warnings of Keras about lambdas: loading fails afterwards, with the reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _save_and_load(model: keras.Model) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        with translate_os_errors(file), _without_warnings():
            model.save(file)
        return load_member(file)


def _check_same_outputs(model: keras.Model, loaded: keras.Model) -> None:
    """Raise ValueError unless both models return the same, as after a `get_config` without an argument."""
    images = noise_images(tuple(model.inputs[0].shape[1:]))[:2]
    expected, outputs = predict_rows(model, images), predict_rows(loaded, images)
    if _are_close(expected, outputs):
        return
    if not _are_close(expected, predict_rows(model, images)):
        raise ValueError("its outputs are random at inference")
    difference = np.nanmax(np.abs(expected - outputs), initial=0.0)
    raise ValueError(f"its outputs differ by up to {difference:.2g}. An argument may be missing in a `get_config`")


def _are_close(a: np.ndarray, b: np.ndarray) -> bool:
    scale = np.abs(a[np.isfinite(a)]).max(initial=1e-6)
    return np.allclose(a, b, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)
