"""Exit codes and messages of mistakes, one row per mistake."""

import contextlib
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from keras_committee import errors, training
from keras_committee.cli import cli, main
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "tests" / "recipes" / "tiny.py"

RAISES = '''"""A recipe that fails while it is built."""

import keras


def recipe(members=2, width=0):
    return 8 // width
'''

DATA_DIR = '''"""A recipe whose data are in a folder."""

import tensorflow


def recipe(data_dir=None):
    pass
'''

PETS = '''"""A recipe that reads class folders."""

import keras

from keras_committee import Recipe, data


def recipe(members=2, learning_rate=0.1, images="images", seed=0):
    return Recipe(
        data=data.image_folder(images, 4, size=(8, 8), validation=2, test=2),
        member=lambda index: None,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(learning_rate),
        epochs=1,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
'''

# Command line, exit code, parts of the message. These are reported before TensorFlow, Keras or NumPy is imported.
EARLY = [
    ("trian", 2, "No such command 'trian'. Did you mean 'train'?", "See: keras-committee --help"),
    ("train tiny.py --worker 2", 2, "No such option '--worker'.", "'--workers'", "See: keras-committee train --help"),
    ("evaluate", 2, "Missing argument 'RUN'.", "See: keras-committee evaluate --help"),
    ("train tyni.py", 2, "no such recipe: tyni.py. Did you mean 'tiny.py'?", "raises.py, tiny.py"),
    ("train https://example.org/tiny.py", 2, "https://example.org/tiny.py", "never"),
    ("train tiny.py --set member=3", 2, "tiny.py", "'member'", "Did you mean 'members'?", "members=3, epochs=2"),
    ("describe tiny.py --set epoch=3", 2, "tiny.py", "'epoch'", "Did you mean 'epochs'?"),
    ("train tiny.py --set members", 2, "--set", "Received: 'members'", "members=3, epochs=2"),
    ("train tiny.py --set learning_rate=fast", 2, "'learning_rate'", "a finite number", "0.05", "Received: 'fast'"),
    ("train broken.py", 2, "broken.py:1: syntax error: ", "\n  def recipe(:\n"),
    ("train empty.py", 2, "empty.py has no function `recipe`."),
    ("train tiny.py --profile 20,10", 2, "'--profile': ", "first and the last step", "Received: '20,10'"),
    ("train tiny.py --workers many", 2, "'--workers': ", "must be auto or a positive integer. Received: 'many'"),
    ("train tiny.py --workers 0", 2, "must be auto or a positive integer. Received: '0'"),
    ("train tiny.py --members one", 2, "'--members': ", "must be member indices such as 0,3. Received: 'one'"),
    ("train tiny.py --strategy mirrorred", 2, "'mirrorred' is not one of 'auto', 'single', 'mirrored', 'multiworker'"),
    ("train tiny.py --run tiny.py/run", 7, "cannot write tiny.py/run", "File exists: tiny.py.\n  A file has the name"),
    ("train tiny.py --epochs 3", 2, "No such option '--epochs'.", "'epochs' is a recipe parameter: --set epochs=3\n"),
    ("train tiny.py --learning-rate=0.1", 2, "\n  'learning_rate' is a recipe parameter: --set learning_rate=0.1\n"),
    ("train tiny.py epochs=3 --set members=2", 2, "(epochs=3)", "\n  'epochs' is a recipe parameter: --set epochs=3\n"),
    ("train tiny.py --set epochs 3", 2, "(3)", "\n  'epochs' is a recipe parameter: --set epochs=3\n"),
    ("init mine.py --from tfrecords images", 3, "it contains images. Use --from image-folder PATH."),
    ("describe tiny.py --epochs", 2, "--set epochs=VALUE"),
    ("train images", 2, "images is not a recipe", "a folder of images", "init recipes/images.py --from"),
    ("train images/cat", 2, "a folder of images without class folders", "--from image-folder images"),
    ("train runs/a", 2, "it is a run folder. To resume it, run: keras-committee train tiny.py --run runs/a"),
    ("train .", 2, "it is a folder. Did you mean", "'tiny.py'?"),
    ("train tiny.py --run images", 4, "images is not a run folder", "cat"),
    ("train tiny.py --run runs/a --set learning_rate=0.1", 4, "learning_rate 0.05 -> 0.1", "--allow-config-change"),
    ("train pets.py --run runs/a", 4, "runs/a", "--run runs/a-2"),
    ("train data.py --set data_dir=none", 3, "no such data directory: none (parameter data_dir)", "data_dir=PATH"),
    ("select runs/a --max-mflops 3 --max-latency 2", 2, "--max-mflops and --max-latency cannot be combined"),
    ("select runs/a --batch-size 8", 2, "--batch-size requires --max-latency or --objective latency."),
    ("select runs/a --cascade --precision auto", 2, "--precision requires --cascade and --max-latency or --objective"),
    ("select runs/a --objective latency", 2, "--objective latency requires --cascade or --min-accuracy."),
    ("select runs/a --objective latency --max-latency 3", 2, "--max-latency cannot be combined with --objective"),
    ("select runs/a --cascade --max-latency 3 --min-accuracy 0.5", 2, "--max-latency and --min-accuracy cannot be"),
    ("select runs/a --max-accuracy-drop 0.1", 2, "--max-accuracy-drop requires --cascade"),
    ("select runs/a --cascade --max-accuracy-drop 0.1 --objective nll", 2, "cannot be combined with --objective"),
    ("select runs/a --cascade --max-accuracy-drop 1 --max-mflops 2", 2, "combined with --max-mflops, --max-latency or"),
    ("select runs/a --cascade --min-accuracy 0.7 --max-mflops 2", 2, "combined with --cascade; give one"),
    ("select runs/a --cascade --min-accuracy 0.7 --objective brier", 2, "--min-accuracy with --cascade cannot"),
    ("select runs/a --min-accuracy 70", 2, "70.0 is not in the range 0<=x<=1"),
    ("search tiny.py --search-space epochs=1:3", 2, "requires --trials N, --budget-gflops X or --budget-minutes"),
    ("search tiny.py --search-space epoch=1:3 --budget-minutes 1", 2, "'epoch'", "Did you mean 'epochs'?"),
    ("predict runs/a", 2, "expected a run or model folder, then at least one image"),
    ("predict a.png --url http://x:1/m --selection s.json", 2, "--selection cannot be combined with --url"),
    ("predict runs/none a.png", 4, "runs/none is not a run folder"),
    ("robustness runs/a --corruptions fog,rain", 2, "'rain' is not one of 'gaussian_noise'", "'jpeg_compression'"),
    ("robustness runs/a --severities 6", 2, "'6' is not one of '1', '2'"),
    ("predict runs a.png", 4, "not a run folder or an exported model: it is a folder of runs. Did you mean 'runs/a'"),
    ("predict images images/cat/00.png", 4, "images is not a run folder or an exported model: it is a folder of im"),
    ("serve runs/a", 2, "it is a run folder. To export it, run: keras-committee export runs/a\n  No server"),
    ("serve runs/a/members", 2, "runs/a/members is not a model folder"),
    ("serve images/cat", 2, "it is a folder of images without class folders."),
    ("serve .", 2, "it has no version, such as 1/saved_model.pb. No server was started.", "export RUN --out ."),
    ("serving-config runs/a --out out", 2, "it is a run folder. To export it", "\n  No file was written."),
    ("serve", 2, "expected either MODEL_DIR or --model-config-file"),
    ("init tiny.py --from image-folder images", 2, "tiny.py already exists. No file was written."),
    ("init mine.txt --from image-folder images", 2, "must end in .py. Received: mine.txt. No file was written."),
    ("init images", 2, "images is not the name", "init recipes/images.py --from image-folder images"),
    ("init . --from image-folder images", 2, ". is not the name of a recipe, such as recipes/mine.py: it is a folder."),
    ("init mine.py --from image-folder none", 3, "none: 1 problem in the data"),
    ("init mine.py --from image-folder images/cat", 3, "Did you mean 'images'?"),
    ("init mine.py --from image-folder runs/a", 3, "it is a run folder."),
    ("init mine.py --from image-folder bad", 3, "2 problems", "dog/: ", "a.png: not a JPEG, PNG", "skip_bad=N"),
    ("import tiny.py images/cat/00.png", 2, "00.png is not a .keras file. No run was changed.", "model.save("),
    ("import tiny.py broken.keras --run runs/a", 8, "broken.keras cannot be loaded: it is not a complete .keras arch"),
    ("import tiny.py empty.keras --input-scaling 0..2", 2, "--input-scaling: expected 0..255, 0..1"),
    ("import tiny.py absent.keras", 2, "no such model: absent.keras. No run was started."),
    ("evaluate runs", 4, "runs is not a run folder: it is a folder of runs. Did you mean 'runs/a' or 'runs/"),
    ("evaluate a", 4, "there is no such folder. Did you mean 'runs/a'?"),
    ("evaluate images", 4, "images is not a run folder: it is a folder of images."),
    ("evaluate runs/a/members/00", 4, "Did you mean 'runs/a'?"),
    ("evaluate runs/none", 4, "runs/none is not a run folder", "keras-committee train RECIPE --run runs/none"),
    ("evaluate runs/a --set members=2", 4, "--set changes paths of the data of runs/a only.", "members 3 -> 2"),
    ("evaluate runs/data --set data_dir=none", 3, "there are no data at none (parameter data_dir)."),
    ("calibrate runs/none", 4, "runs/none is not a run folder"),
    ("evaluate runs/damaged", 4, "runs/damaged/parameters.json is damaged", "keras-committee train tiny.py"),
    ("train tiny.py --set epochs=-1 --run runs/b", 2, "Recipe(epochs=...)", "an integer of 1 or more. Received: -1"),
    ("train pets.py --set images=/nowhere/images --run runs/c", 3, "/nowhere/images"),
    ("train pets.py --set images=runs --run runs/c", 3, "runs: ", "it is a folder of runs"),
    ("train archive.py --run runs/c", 3, "images: 1 problem in the data\n  there are no training shards, named like"),
    ("init mine.py --from tfrecords bad", 3, "bad: 1 problem in the data\n  there are no training shards, named like"),
    ("describe tiny.py --set members=0", 2, "Recipe(members=...) must be an integer of 1 or more. Received: 0"),
    ("search tiny.py --search-space learning_rate=0.1:1 --budget-minutes 1 --set seed=-1", 2, "Recipe(seed=...)"),
    *[
        (f"{command} runs/lost", 3, "lost: 1 problem in the data\n  there is no such folder", "add: --set images=PATH")
        for command in ("evaluate", "calibrate", "robustness", "select", "report")
    ],
    ("search pets.py --search-space learning_rate=0.1:1 --trials 1 --set images=none", 3, "none: 1 problem in the"),
    ("search cifar.py --search-space learning_rate=0.1:1 --trials 1 --set images=none", 3, "none: there is no"),
    ("evaluate runs/a", 6, "runs/a has 0 of 3 members", "0, 1, 2", "keras-committee train tiny.py --run runs/a"),
    ("report runs/a", 6, "runs/a has 0 of 3 members"),
    ("predict runs/a images/cat/00.png", 6, "runs/a has 0 of 3 members"),
    ("export runs/a --selection none.json", 4, "none.json", "keras-committee select RUN"),
    ("export runs/a", 6, "runs/a", "To resume, run: keras-committee train tiny.py"),
    ("export runs/a --out saved_models/a%2f", 2, "'a%2f'", "--out saved_models/committee"),
    ("export runs/a --out tiny.py", 7, "cannot write tiny.py: File exists.\n  A file has the name of the folder."),
    ("make-tfrecords images runs --shards 2", 2, "runs exists. No file was changed."),
    ("make-tfrecords images/cat shards --shards 2", 3, "there are no class folders in", "Did you mean 'images'"),
    ("make-tfrecords none shards --shards 2", 3, "none: 1 problem in the data\n  there is no such folder"),
    ("serve saved_models/a --use-tf-serving", 2, "saved_models/a is not a model folder: there is no such folder."),
    ("serving-config saved_models/a --out out", 2, "saved_models/a"),
    ("serving-config images --out out", 2, "images is not a model folder: it is a folder of images."),
]  # fmt: skip
MISTAKES = [
    *EARLY,
    ("predict --url http://127.0.0.1:1/m bad/dog/b.txt", 3, "1 of 1 images cannot be read; none", "not a JPEG, PNG"),
    ("train tiny.py --run runs/held", 4, "run folder runs/held is in use by pid"),
    ("train tiny.py --strategy multiworker", 2, "TF_CONFIG", '"cluster": {"worker": ["10.0.0.1:4321"'),
    ("train pets.py", 3, "cat/04.png: damaged", "dog/17.png: damaged"),
    ("describe raises.py", 2, "raises.py:7: ZeroDivisionError"),
    ("describe raises.py --set width=3", 2, "raises.py: recipe() must return a keras_committee.Recipe. Received: int"),
]  # fmt: skip
# The exit code that needs trained members; its test is below.
TRAINED_CODES = {5}

HEAVY = ("tensorflow", "keras", "numpy", "rich", "sklearn")
RUN_ALL = f"""
import contextlib, io, json, shlex, sys
from keras_committee.cli import main
from keras_committee.cli.doctor import checks
results = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(shlex.split(command))
    results.append([command, code, [name for name in {HEAVY} if name in sys.modules]])
list(checks.check_packages()), list(checks.check_machine())
results.append(["doctor", 0, [name for name in {HEAVY} if name in sys.modules]])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Folder of recipes, untrained runs and images, valid and not."""
    folder = tmp_path_factory.mktemp("stock")
    shutil.copy(TINY, folder / "tiny.py")
    recipes = {"broken": "def recipe(:\n", "empty": "x = 1\n", "raises": RAISES, "data": DATA_DIR, "pets": PETS}
    recipes["cifar"] = PETS.replace("image_folder(images, 4, size=(8, 8)", "cifar10(4, directory=images")
    recipes["archive"] = PETS.replace("image_folder", "imagenet_records")
    for name, text in recipes.items():
        (folder / f"{name}.py").write_text(text)
    for name in ("bad/cat/a.png", "bad/dog/b.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"not an image")
    rng = np.random.default_rng(0)
    for number in range(24):
        file = folder / "images" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    for name in ("cat/04.png", "dog/17.png"):
        file = folder / "images" / name
        file.write_bytes(file.read_bytes()[:100])
    (folder / "empty.keras").touch()
    (folder / "broken.keras").write_bytes(b"PK\3\4" + bytes(60))
    with contextlib.chdir(folder):
        recipe_file = RecipeFile.read("tiny.py")
        for name in ("a", "held", "damaged"):
            command = f"keras-committee train tiny.py --run runs/{name}"
            Run.create(f"runs/{name}", recipe_file, recipe_file.resolve([]), command=command)
        recipe_file = RecipeFile.read("pets.py")
        parameters = recipe_file.resolve(["images=lost"])
        Run.create("runs/lost", recipe_file, parameters, command="keras-committee train pets.py")
        recipe_file = RecipeFile.read("data.py")
        Run.create("runs/data", recipe_file, {"data_dir": "images"}, command="keras-committee train data.py")
        (Run.open("runs/a").member(0).state / "step-000000000").mkdir(parents=True)
    (folder / "runs/damaged/parameters.json").write_text("{")
    return folder


@pytest.fixture
def stocked(stock, tmp_path, monkeypatch):
    """Copy of that folder, the current one, without TF Serving on the PATH."""
    monkeypatch.chdir(shutil.copytree(stock, tmp_path, dirs_exist_ok=True))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    return tmp_path


def fail(capsys, command):
    """Run a command that prints nothing on stdout and an error on stderr; return its exit code and the last error."""
    code = main(shlex.split(command))
    out, err = capsys.readouterr()
    assert out == ""
    assert not re.search(r"Traceback|File \"|site-packages|0x[0-9a-f]{6}", err)
    *_, last = re.finditer(r"^error: ", err, re.MULTILINE)
    return code, err[last.start() :]


@pytest.mark.parametrize(
    ("command", "code", "words"), [pytest.param(row[0], row[1], row[2:], id=row[0]) for row in MISTAKES]
)
def test_a_mistake_ends_with_its_exit_code_and_a_message(stocked, capsys, command, code, words):
    with Run.open("runs/held").lock():
        exit_code, message = fail(capsys, command)
    assert exit_code == code
    assert [part for part in words if part not in message] == []
    assert max(map(len, message.splitlines())) <= 400


def test_help_and_early_mistakes_load_nothing_heavy(stocked):
    shutil.copytree("images", "valid", ignore=shutil.ignore_patterns("04.png", "17.png"))
    expected = {"--version": 0, "--help": 0, "init new.py --from image-folder valid": 0}
    expected |= {f"{name} --help": 0 for name in cli.commands} | {row[0]: row[1] for row in EARLY}
    program = [sys.executable, "-c", RUN_ALL, json.dumps(list(expected))]
    results = json.loads(subprocess.check_output(program, text=True))
    assert results == [*([command, code, []] for command, code in expected.items()), ["doctor", 0, []]]


def test_every_kind_of_failure_has_a_row():
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CommitteeError)
    ]
    assert {kind.exit_code for kind in kinds} - {1} == {row[1] for row in MISTAKES} | TRAINED_CODES


def test_B01_a_missing_data_dir_starts_no_run(stocked, capsys):
    assert fail(capsys, "train data.py --set data_dir=none --run runs/new")[0] == 3
    assert not pathlib.Path("runs/new").exists()


def test_a_run_of_another_recipe_is_kept(stocked, capsys):
    before = pathlib.Path("runs/a/parameters.json").read_bytes()
    code, message = fail(capsys, "train tiny.py --run runs/a --set learning_rate=0.1")
    assert code == 4
    assert "keras-committee train tiny.py --set learning_rate=0.1 --run runs/a-2" in message
    assert pathlib.Path("runs/a/parameters.json").read_bytes() == before


def test_a_member_that_diverges(stocked, capsys):
    code, message = fail(capsys, "train tiny.py --set members=1 --set learning_rate=1e38 --workers 1")
    assert code == 5
    assert "member 0 diverged at step " in message
    assert "runs/tiny/members/00/state" in message


def test_members_with_identical_weights(copied, capsys):
    shutil.copy(copied / "members/00/model.keras", copied / "members/02/model.keras")
    code, message = fail(capsys, "evaluate runs/tiny")
    assert code == 8
    assert "members 0 and 2 of runs/tiny have identical weights (sha256 " in message
    assert "--allow-duplicate-weights" in message


def test_ctrl_c_prints_the_command_that_resumes(stocked, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_committee", interrupt)
    code, message = fail(capsys, "train tiny.py --run 'runs/my run'")
    assert code == 130
    assert message == "error: interrupted. To resume, run: keras-committee train tiny.py --run 'runs/my run'\n"


def test_a_rejected_first_try_blocks_nothing(stocked, capsys):
    for rejected in ("epochs=0", "epochs=-1"):
        assert fail(capsys, f"train tiny.py --set {rejected} --run runs/new")[0] == 2
        assert not pathlib.Path("runs/new").exists()
    assert fail(capsys, "train pets.py --set learning_rate=0.3 --run runs/new")[0] == 3  # two images are damaged
    code, message = fail(capsys, "train pets.py --set members=1 --run runs/new")
    assert (code, "cat/04.png: damaged" in message) == (3, True)
    assert Run.open("runs/new").parameters() == {"members": 1, "learning_rate": 0.1, "images": "images", "seed": 0}
