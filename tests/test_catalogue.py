"""Does every case of deploy/failures.md have the tests that it names, and are there no others?"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = [
    *(f"A{i:02d}" for i in range(1, 21)),
    *(f"C{i:02d}" for i in range(1, 9)),
    *(f"D{i:02d}" for i in range(1, 23)),
    *(f"E{i:02d}" for i in range(1, 13)),
]


def cases_tested():
    """The names of the tests that begin with ids of cases, and the files that they are in."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^def (test_[A-E]\d\d_\w+)", path.read_text(), re.M):
            found[name] = path.relative_to(ROOT / "tests").as_posix()
    return found


def ids(name):
    return re.match(r"test_((?:[A-E]\d\d_)+)", name).group(1).rstrip("_").split("_")


def test_every_case_has_a_test():
    tested = {case for name in cases_tested() for case in ids(name)}
    assert set(CASES) <= tested


def test_the_table_names_each_case_and_the_files_of_its_tests():
    rows = re.findall(r"^\| ([A-E]\d\d) \|.*\| ([^|]*) \|$", (ROOT / "deploy" / "failures.md").read_text(), re.M)
    files = {case: sorted({path for name, path in cases_tested().items() if case in ids(name)}) for case in CASES}
    files["B09"] = sorted({path for name, path in cases_tested().items() if "B09" in ids(name)})
    assert {case: sorted(re.findall(r"`([\w/.]+)`", named)) for case, named in rows} == files
