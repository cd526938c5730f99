"""Architecture rules that are not import floors; import-linter checks the floors in `make lint`."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_committee"

# `--help` and a mistyped option answer at once because nothing here loads a heavy library at import.
LIGHT = (
    "keras_committee", "api", "choices", "class_folders", "errors", "files", "image_header", "member_dir", "metrics",
    "recipe", "input_scaling", "keras_archive", "keras_config", "progress", "recipe_file", "recipe_function",
    "recipe_source", "run", "selection", "step_display", "cpu_info", "huge_pages", "shard_files", "split_sizes",
    "summaries", "system_limits", "tables", "search", "search.budget", "search.search_space", "export",
    "export.formats", "export.predict", "export.publish", "tfserving", "tfserving.client", "tfserving.config",
    "tfserving.messages", "tfserving.python_session", "tfserving.versions", "cli", "cli.calibrate", "cli.completion",
    "cli.describe", "cli.doctor", "cli.doctor.checks", "cli.evaluate", "cli.export", "cli.import_models", "cli.init",
    "cli.init.defaults", "cli.init.image_stats", "cli.init.pretrained_weights", "cli.init.template",
    "cli.make_tfrecords", "cli.options", "cli.output", "cli.predict", "cli.report", "cli.robustness", "cli.search",
    "cli.select", "cli.serve", "cli.serving_config", "cli.train",
)  # fmt: skip
HEAVY = {"jax", "keras", "matplotlib", "optuna", "ray", "rich", "scipy", "sklearn", "tensorflow", "torch"}

UNSAFE = re.compile(
    r"allow_pickle=True|enable_unsafe_deserialization|safe_mode=False|yaml\.(unsafe_|full_)?load\(|shell=True|os\.system\("
    r"|^ *(import|from) (pickle|dill|joblib|marshal|shelve|cloudpickle)\b|(?<![\w.])(eval|exec)[()]|verify=False"
    r"|exec_module\(",
    re.MULTILINE,
)
ALLOWED = {"recipe_source.py": ["exec_module("]}  # executes the recipe that the user named


def test_light_modules_load_nothing_heavy():
    names = ", ".join(f"keras_committee.{name}".removesuffix(".keras_committee") for name in LIGHT)
    program = f"import sys, {names}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


def test_tensorflow_is_imported_at_module_level_in_its_own_folders_only():
    found = {
        module.relative_to(PACKAGE).parts[0]
        for module in PACKAGE.rglob("*.py")
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "tensorflow" in [getattr(node, "module", ""), *(alias.name for alias in node.names)]
    }
    assert found == {"training", "export"}  # data imports it on first use


def test_no_module_enables_unsafe_calls():
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) >= 100
    found = {
        module.relative_to(PACKAGE).as_posix(): [match.group().strip() for match in UNSAFE.finditer(module.read_text())]
        for module in modules
    }
    assert {name: calls for name, calls in found.items() if calls} == ALLOWED


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
def test_unsafe_calls_are_recognized(line):
    assert UNSAFE.search(f"x = 1\n{line}\n")
