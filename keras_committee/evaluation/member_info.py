"""Size, cost, architecture and weight hash of each member.

The information comes from the model and is cached in the run folder, since loading a model takes seconds.
"""

import dataclasses
import functools
import hashlib
import logging
from pathlib import Path

import keras

from keras_committee import flops
from keras_committee.files import file_hash, read_record, write_record
from keras_committee.models.loading import load_member
from keras_committee.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberInfo:
    """Description of one member.

    Attributes:
        name: The model's name.
        parameters: Number of trainable weights.
        mflops: 2 x multiply-adds / 1e6 for one image; None if unknown.
        uncounted: Layers whose cost is unknown.
        input_shape: Height, width, channels.
        architecture: Hash of the types and sizes of its layers; members of one architecture differ in their weights.
        weights: SHA-256 of all its weights, in hexadecimal digits, whatever file they are stored in.
    """

    name: str
    parameters: int
    mflops: float | None
    uncounted: tuple[str, ...]
    input_shape: tuple[int, ...]
    architecture: str
    weights: str


def load_member_info(run: Run, index: int) -> MemberInfo:
    """Return the description of a trained member, from the cache where it is current. Raises RunError."""
    model_file = run.member(index).model
    cache_file = run.path / "predictions" / "members" / f"{index:02d}.json"
    source = f"{file_hash(model_file)} {_flops_code_hash()}"
    info = _read_if_current(cache_file, source)
    if info is None:
        info = member_info_from_model(load_member(model_file))
        write_record(cache_file, {"source": source, **dataclasses.asdict(info)})
    return info


def member_info_from_model(model: keras.Model) -> MemberInfo:
    """Return the description of a model."""
    costs = flops.count(model)
    layer_signature = [(cost.kind, cost.parameters, cost.multiply_adds) for cost in costs]
    return MemberInfo(
        name=model.name,
        parameters=sum(cost.parameters for cost in costs),
        mflops=flops.mflops(model),
        uncounted=tuple(flops.uncounted_layers(model)),
        input_shape=tuple(model.inputs[0].shape[1:]),
        architecture=hashlib.sha256(repr(layer_signature).encode()).hexdigest()[:12],
        weights=hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest(),
    )


@functools.cache
def _flops_code_hash() -> str:
    """Return the hash of the code that counts the costs: a cached description by other code is stale."""
    sources = sorted(Path(flops.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _read_if_current(file: Path, source: str) -> MemberInfo | None:
    if not file.exists():
        return None
    try:
        document = read_record(file)
        if document.pop("source") != source:
            return None
        tuples = {name: tuple(document[name]) for name in ("input_shape", "uncounted")}
        return MemberInfo(**{**document, **tuples})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.getLogger(__name__).warning("%s is damaged: %s. It is computed again.", file, error)
        return None
