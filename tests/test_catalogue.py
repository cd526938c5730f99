"""Does every case of deploy/failures.md have the tests that it names, and are the words that it quotes said?"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "deploy" / "failures.md").read_text()
SIZES = {"A": 20, "B": 10, "C": 8, "D": 22, "E": 12}
CASES = [f"{letter}{number:02d}" for letter, count in SIZES.items() for number in range(1, count + 1)]
COLUMNS = ("trouble", "happens", "read", "exit", "tests")
EXITS = {"0", "2", "3", "4", "5", "6", "7", "8", "130", "143", "-9", "-"}
ANSWERS = {"200", "400", "404", "408", "413", "431", "503", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}


@pytest.fixture(scope="module")
def rows():
    """What the table says, by case and column."""
    found = re.findall(r"^\| ([A-E]\d\d) \| (.*) \| (.*) \| (.*) \| (.*) \| (.*) \|$", TABLE, re.M)
    return {case: dict(zip(COLUMNS, cells, strict=True)) for case, *cells in found}


@pytest.fixture(scope="module")
def tested():
    """The names of the tests that begin with ids of cases, and the files that they are in."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^def (test_[A-E]\d\d_\w+)", path.read_text(), re.M):
            found[name] = path.relative_to(ROOT / "tests").as_posix()
    return found


def ids(name):
    return re.match(r"test_((?:[A-E]\d\d_)+)", name).group(1).rstrip("_").split("_")


@pytest.fixture(scope="module")
def spoken():
    """Every text that stands in the package, with … for what is filled in; white space is one blank."""
    texts = []
    for path in sorted((ROOT / "keras_committee").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = getattr(node, "values", [node])
            texts.append("".join(part.value for part in parts if isinstance(getattr(part, "value", None), str)))
            texts += [part.value for part in parts if isinstance(getattr(part, "value", None), str)]
    return " ".join("\n".join(texts).split())


def test_the_table_has_all_cases(rows):
    assert len(CASES) == 72
    assert list(rows) == CASES


def test_every_case_has_a_test(tested):
    held = {case for name in tested for case in ids(name)}
    assert [case for case in CASES if case not in held] == []


@pytest.mark.parametrize("case", CASES)
def test_the_table_names_the_files_of_the_tests_of_a_case(case, rows, tested):
    files = sorted({path for name, path in tested.items() if case in ids(name)})
    assert re.findall(r"`([\w/.]+)`", rows[case]["tests"]) == files


@pytest.mark.parametrize("case", CASES)
def test_the_words_that_the_table_quotes_are_those_of_the_program(case, rows, spoken):
    quoted = rows[case]["read"]
    assert quoted == "-" or re.fullmatch("“.+”", quoted)
    pieces = [piece.strip(" .") for piece in re.split(r"…|(?<=\.) ", quoted.strip("“”"))]
    assert [piece for piece in pieces if piece not in spoken] == []


@pytest.mark.parametrize("case", CASES)
def test_the_exit_codes_are_ones_that_there_are(case, rows):
    codes = set(re.split(", | or ", rows[case]["exit"]))
    assert codes <= (EXITS | ANSWERS)
