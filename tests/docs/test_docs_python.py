"""Every Python block of the documentation runs."""

import linecache
import re

import keras
import numpy as np
import pytest
from pages import blocks
from workspace import write_images

from keras_committee import models

BLOCKS = blocks("python")


@pytest.fixture(scope="module")
def names():
    """Names that the blocks use without defining them."""
    x = np.full((2, 8, 8, 4), 0.7, "float32")
    return {
        "images": np.full((2, 32, 32, 3), 120.0, "float32"),
        "model": models.resnet(8, classes=10, survival=0.7),
        "branch": keras.Sequential([keras.layers.Conv2D(4, 3, padding="same")]),
        "x": x,
        "shortcut": x,
    }


@pytest.fixture(scope="module")
def ports(workspace):
    """Ports of a local server with the workspace's committee, by the documented ports."""
    from keras_committee.tfserving.server.local_server import LocalServer, ServerOptions, config_from_folder

    with LocalServer(
        config_from_folder(workspace[0] / "saved_models/cifar_wrn"), ServerOptions(rest_port=0, grpc_port=0)
    ) as server:
        yield {"8501": server.rest_port, "8500": server.grpc_port}


@pytest.fixture
def folder(workspace, tmp_path, monkeypatch):
    write_images(tmp_path)
    (tmp_path / "recipes").symlink_to(workspace[0] / "recipes")
    (tmp_path / "saved_models").mkdir()  # in which a block may export further models
    for model in (workspace[0] / "saved_models").iterdir():
        (tmp_path / "saved_models" / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)


def test_the_blocks_compile():
    assert len(BLOCKS) >= 6
    assert all(compile(block.text, str(block), "exec") for block in BLOCKS)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs(block, names, ports, folder):
    text = re.sub(r"(127\.0\.0\.1):(850[01])", lambda found: f"{found[1]}:{ports[found[2]]}", block.text)
    namespace = {**names, "__name__": str(block)}
    linecache.cache[str(block)] = (len(text), None, text.splitlines(keepends=True), str(block))
    exec(compile(text, str(block), "exec"), namespace)
    recipes = [namespace["recipe"]() for name in namespace if name == "recipe"]
    assert [len(recipe.data.load().classes) for recipe in recipes] == [5] * len(recipes)
    assert [recipe.member(0).output_shape for recipe in recipes] == [(None, 5)] * len(recipes)
