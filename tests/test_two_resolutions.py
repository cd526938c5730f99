"""Runs on the same photographs at two sizes work with every command and receive the same pixels throughout."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow")

import keras

from keras_committee.cli import main
from keras_committee.run import Run

RECIPE = pathlib.Path(__file__).parent / "recipes" / "cropped.py"
SIZES = {"small": 12, "large": 20}
CLASSES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of JPEGs of different sizes: a color that depends on the class, and much noise."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 10), ("test", 16)):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (3, 4, 3)) * 0.8 + 50 * np.eye(3)[label]
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.resize((30 + number, 41 - number)).save(folder / f"{number:02d}.jpg")
    return root


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """Two runs, trained and evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    for name, size in SIZES.items():
        settings = [f"--set=data_dir={photos}", f"--set=size={size}", f"--set=seed={size}"]
        assert main(["train", str(RECIPE), "--run", str(folder / name), "--workers", "1", *settings]) == 0
        assert main(["evaluate", str(folder / name)]) == 0
    return [folder / name for name in SIZES]


@pytest.fixture(scope="module")
def selection(runs):
    """A cascade of both runs, whatever `select` would choose."""
    file = runs[0] / "selection.json"
    both = list(map(str, runs))
    assert main(["select", *both, "--cascade", "--allow-incomplete", "1", "--out", str(file)]) == 0
    document = json.loads(file.read_text())
    document |= {"kind": "cascade", "members": _members(runs), "weights": None}
    document |= {"head": "geometric_mean", "confidence": "max_probability"}
    document["stages"] = [{"members": 1, "threshold": _median(runs[0])}, {"members": 2, "threshold": None}]
    del document["checksum"]  # of the file as `select` wrote it
    file.write_text(json.dumps(document))
    return file


def _members(runs):
    from keras_committee.evaluation.pool import load_pool
    from keras_committee.evaluation.select import to_selection_members

    pool = load_pool([Run.open(run) for run in runs])
    assert pool.predictions["test"].shape == (48, 2, 3)
    return [vars(member) for member in to_selection_members(pool, [0, 1], runs[0] / "selection.json")]


def member_probabilities(run):
    """float64 probabilities `(examples, classes)` of the run's member on the pixels of its own test split."""
    opened = Run.open(run)
    model = keras.saving.load_model(opened.member(0).model, compile=False)
    [images] = [images for images, _ in opened.recipe().data.load().test.batches(100)]
    return np.asarray(keras.ops.softmax(model(np.asarray(images, np.float32)))).astype(float)


def _median(run):
    return float(np.median(member_probabilities(run).max(axis=1))) + 1e-3


@pytest.fixture(scope="module")
def exported(runs, selection, tmp_path_factory):
    to = tmp_path_factory.mktemp("saved_models") / "both"
    assert main(["export", *map(str, runs), "--selection", str(selection), "--out", str(to)]) == 0
    return to


def definition(runs):
    """Probabilities of the cascade on the test split, and members used."""
    small, large = (member_probabilities(run) for run in runs)
    both = np.sqrt(small * large)
    both /= both.sum(axis=1, keepdims=True)
    confident = small.max(axis=1) >= _median(runs[0])
    return np.where(confident[:, None], small, both), np.where(confident, 1, 2)


@pytest.mark.slow
def test_a_cascade_of_two_resolutions_predicts_files_as_its_members_do(runs, photos, exported):
    from keras_committee.export.predict import ExportedCommittee

    files = [file for name in CLASSES for file in sorted((photos / "test" / name).iterdir())]
    answers = ExportedCommittee.from_folder(exported).predict([file.read_bytes() for file in files])
    probabilities, used = definition(runs)
    assert set(used) == {1, 2}
    np.testing.assert_array_equal(answers["members_used"], used)
    np.testing.assert_allclose(answers["probabilities"], probabilities, atol=1e-5)
    record = json.loads((exported / "1" / "committee.json").read_text())
    assert [each["size"] for each in record["transforms"]] == [[12, 12], [20, 20]]
    assert {each["padding"] for each in record["transforms"]} == {4}


@pytest.mark.slow
def test_predict_gives_the_same_for_the_runs_and_the_export(runs, photos, selection, exported, capsys):
    files = [str(photos / "test" / name / "03.jpg") for name in CLASSES]
    answers = []
    for source in ([str(runs[1]), "--selection", str(selection)], [str(exported)]):
        capsys.readouterr()
        assert main(["predict", "--json", *source[:1], *files, *source[1:]]) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    for one, other in zip(*answers, strict=True):
        assert one["members_used"] == other["members_used"]
        assert [each["class"] for each in one["top"]] == [each["class"] for each in other["top"]]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-5)


@pytest.mark.slow
def test_one_report_shows_both_runs_and_robustness_uses_the_transform(runs, selection, tmp_path):
    assert main(["report", *map(str, runs), "--selection", str(selection), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    arguments = ["--corruptions", "brightness", "--severities", "1", "--max-examples", "12"]
    assert main(["robustness", str(runs[0]), *arguments]) == 0


@pytest.mark.slow
def test_the_whole_committee_of_both_runs_is_exported_without_a_selection(runs, photos, tmp_path):
    from keras_committee.export.predict import ExportedCommittee

    assert main(["export", *map(str, runs), "--out", str(tmp_path / "all")]) == 0
    files = sorted((photos / "test" / "bee").iterdir())
    answers = ExportedCommittee.from_folder(tmp_path / "all").predict([file.read_bytes() for file in files])
    small, large = (member_probabilities(run)[16:32] for run in runs)
    both = np.sqrt(small * large)
    np.testing.assert_allclose(answers["probabilities"], both / both.sum(axis=1, keepdims=True), atol=1e-5)
