"""Recognition of folders, and the folders that messages suggest."""

from pathlib import Path

import pytest

from keras_committee.folder_kinds import FolderKind, explain_wrong_folder, folder_kind

RUN, MODEL, IMAGES = FolderKind.RUN, FolderKind.MODEL, FolderKind.IMAGES
CONVERTED = "it is a model for another runtime than TF Serving"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Current folder with runs, exported models, images and shards."""
    monkeypatch.chdir(tmp_path)
    files = [
        *(f"runs/{run}/{name}" for run in ("a", "b") for name in ("recipe.py", "parameters.json", "members/00/state")),
        *("onnx_models/a/1/model.onnx", "openvino_models/d/2/model.xml"),
        *("saved_models/a/1/saved_model.pb", "saved_models/c/007/saved_model.pb", "saved_models/a/1/variables/x"),
        *(
            "pets/train/cat/1.png",
            "pets/train/dog/2.JPG",
            "digits/0/1.png",
            "digits/1/1.png",
            "records/train-00000-of-00001",
        ),
        "empty/.keep",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("runs/a", RUN),
        ("runs", FolderKind.RUNS),
        ("saved_models/a/1", FolderKind.VERSION),
        ("saved_models/c", MODEL),
        ("saved_models", FolderKind.MODELS),
        ("onnx_models/a", FolderKind.CONVERTED),
        ("openvino_models/d/2", FolderKind.CONVERTED),
        ("records", FolderKind.SHARDS),
        ("pets/train/cat", FolderKind.CLASS),
        ("pets/train", IMAGES),
        ("pets", IMAGES),
        ("digits", IMAGES),  # classes named like versions
        ("empty", None),
        ("none", None),
        ("pets/train/cat/1.png", None),
    ],
)
def test_every_kind_is_recognized(project, name, kind):
    assert folder_kind(project / name) is kind


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("runs/a", MODEL, "it is a run folder. Did you mean 'saved_models/a'?"),
        ("runs/b", MODEL, "it is a run folder. To export it, run: keras-committee export runs/b"),
        ("runs/a/members/00", RUN, "it is inside another folder. Did you mean 'runs/a'?"),
        ("saved_models/a/1", MODEL, "it is one version of an exported model. Did you mean 'saved_models/a'?"),
        ("saved_models/a/1/variables", RUN, "it is inside another folder. Did you mean 'runs/a'?"),
        (
            "saved_models",
            MODEL,
            "it is a folder of exported models. Did you mean 'saved_models/a' or 'saved_models/c'?",
        ),
        ("c", MODEL, "there is no such folder. Did you mean 'saved_models/c'?"),
        ("pets/train/cat", IMAGES, "it is a folder of images without class folders. Did you mean 'pets/train'?"),
        ("onnx_models/a", MODEL, f"{CONVERTED}. Did you mean 'saved_models/a'?"),
        ("onnx_models/a/1", RUN, f"{CONVERTED}. Did you mean 'runs/a'?"),
        (
            "openvino_models/d",
            MODEL,
            f"{CONVERTED}. It was exported with --format openvino; only that runtime, and `keras-committee predict "
            "openvino_models/d IMAGE`, can load it. For TF Serving, export the run without --format.",
        ),
        ("openvino_models/d", RUN, f"{CONVERTED}. Name the run that it was exported from."),
        ("runs/a", RUN, ""),
        ("empty", RUN, ""),
        ("none", MODEL, ""),
    ],
)
def test_a_wrong_folder_is_explained_with_the_one_that_was_meant(name, wanted, message):
    assert explain_wrong_folder(Path(name), wanted) == message
