"""The formats of an export, and the runtimes that load them.

A SavedModel is for TensorFlow Serving. The other formats have one function, from raw pixels to the outputs of
`serving_default`, and run without TensorFlow. Nothing here imports a runtime before it is needed.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_committee.errors import RecipeError, did_you_mean
from keras_committee.folder_kinds import MODEL_FILES, version_format

SAVED_MODEL = "saved-model"
FORMATS = tuple(MODEL_FILES)
INPUT_DTYPES = ("float32", "uint8")

RunFn = Callable[[Any], dict[str, Any]]  # of NumPy arrays


@dataclasses.dataclass(frozen=True)
class Format:
    """A format other than the SavedModel.

    Attributes:
        name: Its name, which is also that of the extra with its packages.
        title: Its name in sentences.
        runtime: Distribution of the runtime.
        modules: What the conversion and the runtime import.
        has_strings: Whether the runtime returns the output `label`.
        call: Statements that load the version in a folder `{folder}` and run it for `pixels`.
    """

    name: str
    title: str
    runtime: str
    modules: tuple[str, ...]
    has_strings: bool
    call: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of the file of a version that the runtime loads."""
        return MODEL_FILES[self.name]


CONVERTED_FORMATS = {
    each.name: each
    for each in (
        Format(
            name="onnx",
            title="ONNX",
            runtime="onnxruntime",
            modules=("onnx", "onnxruntime", "tf2onnx"),
            has_strings=True,
            call=(
                'session = onnxruntime.InferenceSession("{folder}/model.onnx")',
                'session.run(["probabilities", "class_id"], {{"image": pixels}})',
            ),
        ),
        Format(
            name="litert",
            title="LiteRT",
            runtime="ai-edge-litert",
            modules=("ai_edge_litert",),
            has_strings=True,
            call=(
                'interpreter = ai_edge_litert.interpreter.Interpreter("{folder}/model.tflite")',
                'interpreter.get_signature_runner("serving_default")(image=pixels)',
            ),
        ),
        Format(
            name="openvino",
            title="OpenVINO",
            runtime="openvino",
            modules=("openvino",),
            has_strings=False,  # 2026.4 returns no tensors of strings to Python
            call=(
                'model = openvino.compile_model("{folder}/model.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
                'model({{"image": pixels}})["probabilities"]',
            ),
        ),
    )
}


def check_format(name: str, precision: str = "float32", input_dtype: str = "float32") -> None:
    """Raise RecipeError unless this machine can export in a format: before a member is loaded.

    Args:
        name: One of `FORMATS`.
        precision: The requested precision of the export.
        input_dtype: One of `INPUT_DTYPES`, of the pixels that the only function of a converted format takes.
    """
    if name not in FORMATS:
        raise RecipeError(
            f"the format must be one of {', '.join(FORMATS)}. Received: {name!r}.{did_you_mean(name, FORMATS)}"
        )
    if input_dtype not in INPUT_DTYPES:
        raise RecipeError(f"the input dtype must be one of {', '.join(INPUT_DTYPES)}. Received: {input_dtype!r}")
    if name == SAVED_MODEL and input_dtype != "float32":
        raise RecipeError(
            "a SavedModel takes both: its signature predict_uint8 takes uint8 pixels, serving_default float32 pixels. "
            "Nothing was published.\n  Export it without --input-dtype."
        )
    if name == SAVED_MODEL:
        return
    if precision == "bfloat16":
        raise RecipeError(
            f"an export in {CONVERTED_FORMATS[name].title} computes in float32. Received: precision 'bfloat16'. "
            "Nothing was published.\n  Use --precision float32, or --format saved-model."
        )
    check_packages(name)


def check_packages(name: str) -> None:
    """Raise RecipeError if a package of a format is missing, which names its extra."""
    fmt = CONVERTED_FORMATS[name]
    if missing := [module for module in fmt.modules if importlib.util.find_spec(module) is None]:
        raise RecipeError(
            f"the format {name} requires packages that are not installed: {', '.join(missing)}.\n"
            f'  pip install "keras-committee[{name}]"'
        )


def check_no_other_format(model_dir: Path, name: str) -> None:
    """Raise RecipeError if a model folder has versions in another format: a server loads the newest, in its own.

    Raises:
        OSError: If the folder cannot be read.
    """
    folders = [model_dir / entry for entry in os.listdir(model_dir)] if model_dir.is_dir() else []
    others = {folder.name: version_format(folder) for folder in folders if folder.name.isdecimal()}
    for version, other in others.items():
        if other not in (None, name):
            raise RecipeError(
                f"{model_dir} has version {version} in the format {other}; a model folder has one format. "
                "Nothing was published.\n  Choose another folder: --out FOLDER."
            )


def runtime_version(name: str) -> str:
    """Return the runtime of a format with its version, such as `"onnxruntime 1.32.0"`."""
    runtime = "tensorflow" if name == SAVED_MODEL else CONVERTED_FORMATS[name].runtime
    return f"{runtime} {importlib.metadata.version(runtime)}"


def python_call(name: str, folder: Path | str) -> list[str]:
    """Return two lines of Python that run the version in `folder` for `pixels`."""
    return [line.format(folder=folder) for line in CONVERTED_FORMATS[name].call]


def load(folder: Path) -> RunFn:
    """Load a version in its runtime.

    Args:
        folder: Folder of a version in one of `CONVERTED_FORMATS`.

    Returns:
        Function of raw pixels `(batch, height, width, channels)` that returns the outputs by name. It casts the pixels
        to the dtype of the version's input. Strings are object arrays of bytes.
    """
    name = version_format(folder)
    if name not in CONVERTED_FORMATS:
        raise ValueError(f"{folder} has none of the files {', '.join(MODEL_FILES.values())}.")
    loaders = {"onnx": _load_onnx, "litert": _load_litert, "openvino": _load_openvino}
    return loaders[name](folder / MODEL_FILES[name])


def _load_onnx(file: Path) -> RunFn:
    import numpy as np
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    dtype = {"tensor(uint8)": "uint8"}.get(session.get_inputs()[0].type, "float32")
    names = [output.name for output in session.get_outputs()]

    def encode(value):
        return np.array([label.encode() for label in value.ravel()], object) if value.dtype == object else value

    def run(image):
        values = map(np.asarray, session.run(names, {"image": image.astype(dtype, copy=False)}))
        return {name: encode(value) for name, value in zip(names, values, strict=True)}

    return run


def _load_litert(file: Path) -> RunFn:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(str(file), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner("serving_default")
    dtype = runner.get_input_details()["image"]["dtype"]
    return lambda image: runner(image=image.astype(dtype, copy=False))


def _load_openvino(file: Path) -> RunFn:
    import numpy as np
    import openvino

    # OpenVINO's default is bfloat16 on CPUs that support it.
    model: Any = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.get_any_name() for output in model.outputs]
    dtype = model.inputs[0].element_type.to_dtype()

    def run(image):
        outputs = model({"image": image.astype(dtype, copy=False)})
        return {name: np.array(outputs[name]) for name in names}

    return run
