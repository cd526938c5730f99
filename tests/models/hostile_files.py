"""Hostile `.keras` files. Each function takes the bytes of a valid file and the path of a canary."""

import io
import json
import stat
import zipfile

import h5py
import keras


def rewritten(content, change=None, **members):
    """The archive in `content` with its config modified by `change` and some members replaced or added."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    (change or bool)(config)
    files |= {"config.json": json.dumps(config).encode(), **members}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def with_member(name, data=b"x", mode=0, compression=zipfile.ZIP_STORED):
    def make(content, _canary):
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, compression
        out = io.BytesIO(content)
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr(info, data)
        return out.getvalue()

    return make


def touch(canary):
    """A serialized Lambda layer that writes `canary` when it is called."""
    layer = keras.layers.Lambda(lambda x, path=str(canary): (open(path, "w").close(), x)[1], name="sneaky")
    return keras.saving.serialize_keras_object(layer)


def a_lambda(content, canary):
    def change(config):
        config["config"]["layers"][1].update({**touch(canary), "name": config["config"]["layers"][1]["name"]})

    return rewritten(content, change)


def a_nested_lambda(content, canary):
    """A Lambda in a layer in a nested model."""

    def change(config):
        inner = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.TimeDistributed(keras.layers.Dense(2))])
        inner = keras.saving.serialize_keras_object(inner)
        inner["config"]["layers"][1]["config"]["layer"] = touch(canary)
        config["config"]["layers"][1].update(inner)

    return rewritten(content, change)


def an_activation(module, kind, name):
    def make(content, _canary):
        function = {"module": module, "class_name": kind, "config": name, "registered_name": name}
        return rewritten(
            content, lambda config: config["config"]["layers"][-1]["config"].update(name="sneaky", activation=function)
        )

    return make


def a_class_of(module, name):
    def make(content, _canary):
        fields = {"module": module, "class_name": name, "registered_name": name}
        return rewritten(content, lambda config: config["config"]["layers"][-1].update(fields))

    return make


def a_saved_graph(content, canary):
    layer = {"module": "keras.layers", "class_name": "TFSMLayer", "registered_name": None}
    config = {"name": "sneaky", "filepath": str(canary.parent), "call_endpoint": "serve", "trainable": True}
    return rewritten(content, lambda file: file["config"]["layers"][1].update(layer, config=config))


def weights_elsewhere(content, canary):
    """The weights are a link to another file, which exists."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        canary.with_suffix(".h5").write_bytes(archive.read("model.weights.h5"))
    with h5py.File(out, "w") as file:
        file["layers"] = h5py.ExternalLink(str(canary.with_suffix(".h5")), "/layers")
    return rewritten(content, **{"model.weights.h5": out.getvalue()})


def hdf5(**attributes):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file.attrs.update(attributes)
    return out.getvalue()


def an_hdf5_file(_content, _canary):
    return hdf5(model_config=json.dumps({"class_name": "Lambda", "config": {}}))


CODE = {  # the file, and what the message names
    "lambda": (a_lambda, "layer 'sneaky' \\(Lambda\\)"),
    "nested lambda": (a_nested_lambda, "layer 'sneaky' \\(Lambda\\)"),
    "os.system": (an_activation("os", "function", "system"), "layer 'sneaky' \\(Dense\\)"),
    "subprocess.run": (an_activation("subprocess", "function", "run"), "layer 'sneaky' \\(Dense\\)"),
    "marshalled code": (an_activation("builtins", "__lambda__", {"code": "4wEAAA=="}), "layer 'sneaky' \\(Dense\\)"),
    "subprocess.Popen": (a_class_of("subprocess", "Popen"), "\\(Popen\\)"),
    "saved graph": (a_saved_graph, "layer 'sneaky' \\(TFSMLayer\\)"),
    "up": (with_member("../../canary"), r"member '\.\./\.\./canary', which leads out of the archive"),
    "up, windows": (with_member("..\\..\\canary"), "which leads out of the archive"),
    "absolute": (with_member("/tmp/canary"), "member '/tmp/canary', which leads out of the archive"),
    "link": (with_member("assets", b"/etc", stat.S_IFLNK | 0o777), "member 'assets', which is a link"),
    "bomb": (
        with_member("assets/zeros", bytes(80 * 2**20), compression=zipfile.ZIP_DEFLATED),
        r"83,9\d\d,\d{3} bytes in an archive of \d\d\d,\d{3}",
    ),
}
DAMAGE = {
    "get_file": (an_activation("keras.utils", "function", "get_file"), r"[\s\S]*get_file"),
    "eval": (an_activation("builtins", "function", "eval"), r"[\s\S]*Could not locate function 'eval'"),
    "link in the weights": (weights_elsewhere, "Skipping nested container"),
    "no weights": (lambda content, _: rewritten(content, **{"model.weights.h5": hdf5()}), "Skipping nested container"),
    "deep config": (
        lambda content, _: rewritten(content, **{"config.json": b"[" * 100_000}),
        "it is not a complete .keras archive .maximum recursion depth",
    ),
    "no config": (lambda content, _: rewritten(content, **{"config.json": b"{}"}), ""),
    "cut": (lambda content, _: content[:-40], "it is not a complete .keras archive"),
    "text": (lambda content, _: b"#!/bin/sh\n", "it is not a complete .keras archive"),
}
