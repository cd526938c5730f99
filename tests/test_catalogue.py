"""The failure catalogue, deploy/failures.md: its cases, tests, quoted messages and exit codes."""

import ast
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CATALOGUE = ROOT / "deploy" / "failures.md"
SIZES = {"A": 22, "B": 10, "C": 8, "D": 22, "E": 12}
CASES = [f"{letter}{number:02d}" for letter, count in SIZES.items() for number in range(1, count + 1)]
EXIT_CODES = {"0", "2", "3", "4", "5", "6", "7", "8", "130", "143", "-9", "-"}
STATUS_CODES = {"200", "400", "404", "408", "413", "431", "503", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
ROW = re.compile(r"^\| ([A-E]\d\d) \| .* \| .* \| (.*) \| (.*) \| (.*) \|$", re.M)  # case, message, exit code, tests


def find_tests():
    """Return the files with a test of each case; the name of such a test begins with the cases: `test_A01_A05_...`."""
    files = {case: set() for case in CASES}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for prefix in re.findall(r"^def test_((?:[A-E]\d\d_)+)", path.read_text(), re.M):
            for case in prefix.rstrip("_").split("_"):
                files[case].add(path.relative_to(ROOT / "tests").as_posix())
    return files


def strings_of_the_package():
    """Return every string of the package, without what f-strings insert and with single spaces."""
    texts = []
    for path in sorted((ROOT / "keras_committee").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = getattr(node, "values", [node])
            strings = [part.value for part in parts if isinstance(getattr(part, "value", None), str)]
            texts += ["".join(strings), *strings]
    return " ".join("\n".join(texts).split())


def problems_of(case, message, codes, tests, files, strings):
    if not files:
        yield f"{case} has no test"
    if tests != ", ".join(f"`{name}`" for name in sorted(files)):
        yield f"{case} names the tests {tests}, but they are in {', '.join(sorted(files))}"
    if message != "-" and not re.fullmatch("“.+”", message):
        yield f"{case} has a message without quotation marks: {message}"
    pieces = [piece.strip(" .") for piece in re.split(r"…|(?<=\.) ", message.strip("“”-"))]
    yield from (f"{case} quotes a message that no module prints: {piece}" for piece in pieces if piece not in strings)
    if unknown := set(re.split(", | or ", codes)) - EXIT_CODES - STATUS_CODES:
        yield f"{case} has an unknown exit code: {unknown}"


def test_the_catalogue_has_the_tests_messages_and_exit_codes_of_every_case():
    """After moving tests, run this test with REWRITE_CATALOGUE=1 to update their paths in the table."""
    files, strings = find_tests(), strings_of_the_package()
    table = CATALOGUE.read_text()
    if os.environ.get("REWRITE_CATALOGUE"):
        listings = {case: ", ".join(f"`{name}`" for name in sorted(names)) for case, names in files.items()}
        table = ROW.sub(lambda row: row[0].removesuffix(f"{row[4]} |") + f"{listings[row[1]]} |", table)
        CATALOGUE.write_text(table)
    rows = {case: cells for case, *cells in ROW.findall(table)}
    assert list(rows) == CASES
    problems = [problem for case in CASES for problem in problems_of(case, *rows[case], files[case], strings)]
    assert not problems, "\n".join(problems)
