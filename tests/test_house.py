"""Do the modules keep to their floors, their names and their size?"""

import ast
import re
from pathlib import Path

import pytest
from copies import code_lines, copies

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_committee"
MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON = MODULES + sorted((ROOT / "recipes").glob("*.py")) + sorted((ROOT / "tests").rglob("*.py"))

# From the ground up. A module imports from floors below its own, or inside its own folder.
FLOORS = [
    ["errors"],
    ["layers", "metrics", "flops", "schedules", "files", "environment", "host", "tables", "class_folders", "summaries"],
    ["models", "data", "figures"],
    ["recipe", "member_folder"],
    ["recipe_file", "selection"],
    ["run"],
    ["training", "evaluation", "serving"],
    ["search"],
    ["cli"],
]
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
WITH_TENSORFLOW = ("data", "training", "serving")
FAST_PATHS = (
    "layers/normalization.py",
    "layers/row_window.py",
    "layers/functional_branch.py",
    "layers/graph.py",
    "models/saved_model.py",
)  # inside functions
WITHOUT_KERAS = (
    "errors.py",
    "recipe.py",
    "recipe_file.py",
    "run.py",
    "system_limits.py",
    "class_folders.py",
    "run.py",
    "member_dir.py",
    "selection.py",
    "metrics/__init__.py",
    "metrics/calibration.py",
    "metrics/checks.py",
    "metrics/detection.py",
    "metrics/diversity.py",
    "metrics/scores.py",
    "metrics/uncertainty.py",
    "files.py",
    "summaries.py",
    "tables.py",
    "__init__.py",
    "cli/__init__.py",
    "cli/options.py",
    "cli/output.py",
    "cli/describe.py",
    "cli/train.py",
    "cli/import_models.py",
    "cli/evaluate.py",
    "cli/select.py",
    "cli/search.py",
    "search/__init__.py",
    "search/search_space.py",
    "search/budget.py",
    "cli/make_tfrecords.py",
    "cli/report.py",
    "cli/calibrate.py",
    "cli/robustness.py",
    "cli/serve.py",
    "cli/export.py",
    "cli/predict.py",
    "cli/serving_config.py",
    "cli/new/__init__.py",
    "cli/init/template.py",
    "cli/init/template.py",
    "cli/init/image_stats.py",
    "cli/options.py",
    "cli/completion.py",
    "cli/doctor/__init__.py",
    "cli/doctor/checks.py",
    "cli/doctor/checks.py",
    "cli/doctor/checks.py",
    "cli/doctor/checks.py",
    "tfserving/config.py",
    "tfserving/config.py",
    "tfserving/config.py",
    "export/publish.py",
)
NAMELESS = ("utils", "util", "common", "helpers", "helper", "base", "misc")
UNSAFE = re.compile(
    r"allow_pickle=True|enable_unsafe_deserialization|safe_mode=False|yaml\.(unsafe_|full_)?load\(|shell=True|os\.system\("
    r"|^ *(import|from) (pickle|dill|joblib|marshal|shelve|cloudpickle)\b|(?<![\w.])(eval|exec)[()]|verify=False",
    re.MULTILINE,
)
EXECUTES = {"recipe_file.py": ["exec)"]}  # the recipe, which the user has named
LONGEST_FILE, LONGEST_FUNCTION = 300, 45  # lines; of a function without its head and docstring


def imported(node: ast.AST) -> list[str]:
    """The dotted names that an import statement brings in; none for every other node."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def imports(source: str) -> list[str]:
    return [name for node in ast.walk(ast.parse(source)) for name in imported(node)]


def imports_at_import_time(source: str) -> list[str]:
    """Those that run when the module is imported: not the ones inside functions."""
    nodes, names = [ast.parse(source)], []
    while nodes:
        node = nodes.pop()
        names += imported(node)
        nodes += [each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.FunctionDef | ast.Lambda)]
    return names


def climbs(place: str, source: str) -> list[str]:
    """The imports of the module at `place` that do not lead to a lower floor or stay in its folder."""
    room = place.split("/")[0].removesuffix(".py")
    ours = [name.split(".")[1] for name in imports(source) if name.split(".")[0] == "keras_committee" and "." in name]
    relative = [name for name in imports(source) if name.startswith(".")]
    return relative + [to for to in ours if to != room and LEVELS.get(to, 99) >= LEVELS[room]]


def tensorflow_imports(place: str, source: str) -> list[str]:
    """The imports of TensorFlow that the module at `place` may not have."""
    names = imports_at_import_time(source) if place in FAST_PATHS else imports(source)
    allowed = place.split("/")[0] in WITH_TENSORFLOW
    return [name for name in names if name.split(".")[0] == "tensorflow" and not allowed]


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_house_is_found():
    assert len(MODULES) >= 20
    assert {place(path).split("/")[0].removesuffix(".py") for path in MODULES} <= {*LEVELS, "__init__"}


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=place)
def test_a_module_imports_only_from_lower_floors_or_its_own_folder(path):
    assert climbs(place(path), path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_tensorflow_stays_in_its_rooms(path):
    assert tensorflow_imports(place(path), path.read_text()) == []


@pytest.mark.parametrize("name", WITHOUT_KERAS)
def test_the_light_modules_import_nothing_heavy(name):
    heavy = {"keras", "tensorflow", "sklearn", "matplotlib", "rich", "jax"}
    assert heavy.isdisjoint(name.split(".")[0] for name in imports_at_import_time((PACKAGE / name).read_text()))


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_module_says_what_it_answers_and_is_short(path):
    source = path.read_text()
    first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    assert first.count("?") == 1
    assert len(source.splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_no_function_is_long(path):
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if _lines(node) > LONGEST_FUNCTION] == []


def _lines(function):
    """Lines of the body of a function, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_six_lines_of_code_stand_twice():
    places = [*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py"))]
    assert copies({path.relative_to(ROOT).as_posix(): path.read_text() for path in places}) == []


def test_a_copy_would_be_found_under_another_indentation_and_among_comments():
    code = [f"value_{number} = work({number})" for number in range(7)]
    other = ["def f():", '    """Says something else."""', *(f"    {line}  # why" for line in code[:3]), "    # so"]
    other += [f"    {line}" for line in code[3:]]
    sources = {"one.py": "import os\n" + "\n".join(code), "two.py": "\n".join(other)}
    assert copies(sources) == [["one.py:2", "two.py:3"], ["one.py:3", "two.py:4"]]
    assert copies(sources, 8) == []
    assert [number for number, _ in code_lines(sources["two.py"])] == [3, 4, 5, 7, 8, 9, 10]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_has_a_name_that_says_nothing(path):
    assert path.stem not in NAMELESS
    assert path.parent.name not in NAMELESS


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_nothing_unsafe_is_switched_on(path):
    assert [found.group().strip() for found in UNSAFE.finditer(path.read_text())] == EXECUTES.get(place(path), [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "    from joblib import load",
        "np.load(file, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(words, shell=True)",
        "yaml.load(text)",
        "keras.config.enable_unsafe_deserialization()",
    ],
)
def test_what_is_unsafe_would_be_found(line):
    assert UNSAFE.search(f"x = 1\n{line}\n")


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.name)
def test_no_test_chooses_what_it_checks(path):
    tests = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    tests = [test for test in tests if test.name.startswith("test_")]
    assert [test.name for test in tests if any(isinstance(node, ast.If) for node in ast.walk(test))] == []


@pytest.mark.parametrize(
    ("place", "source", "found"),
    [
        ("layers/heads.py", "from keras_committee.models import Ensemble", ["models"]),
        ("data/cifar.py", "def read():\n    from keras_committee import training", ["training"]),
        ("models/resnet.py", "import keras_committee.data.cifar", ["data"]),
        ("models/resnet.py", "from keras_committee import layers\nfrom keras_committee.models import wide_resnet", []),
        ("models/resnet.py", "from . import wide_resnet", ["..wide_resnet"]),
        ("run.py", "from keras_committee import Recipe", ["Recipe"]),
        ("cli/train.py", "from keras_committee.errors import CommitteeError", []),
    ],
)
def test_a_climbing_import_would_be_found(place, source, found):
    assert climbs(place, source) == found


@pytest.mark.parametrize(
    ("place", "source", "found"),
    [
        ("models/resnet.py", "def f():\n    import tensorflow as tf", ["tensorflow"]),
        ("layers/normalization.py", "import tensorflow", ["tensorflow"]),
        ("layers/normalization.py", "def f():\n    import tensorflow as tf", []),
        ("layers/heads.py", "from tensorflow.nn import softmax", ["tensorflow.nn.softmax"]),
        ("data/cifar.py", "import tensorflow as tf", []),
    ],
)
def test_tensorflow_in_a_wrong_room_would_be_found(place, source, found):
    assert tensorflow_imports(place, source) == found
