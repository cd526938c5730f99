"""Which lines of code stand in two places?

A docstring, a comment, an import and a lone bracket are no code, and neither is the head of a function with its
decorators: those who answer to one interface have one signature.
"""

import ast
import collections

SKIPPED = (ast.Import, ast.ImportFrom)


def code_lines(source: str) -> list[tuple[int, str]]:
    """Number and text of each line of code, without what is indentation or comment."""
    tree, left_out = ast.parse(source), set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text or isinstance(node, SKIPPED):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node, *node.decorator_list], key=lambda part: part.lineno)
            left_out.update(range(first.lineno, node.body[0].lineno))
    lines = enumerate(source.splitlines(), start=1)
    stripped = ((number, line.split("  #")[0].strip()) for number, line in lines if number not in left_out)
    return [(number, line) for number, line in stripped if line.strip("()[]{}, :") and not line.startswith("#")]


def copies(sources: dict[str, str], length: int = 6) -> list[list[str]]:
    """The places, `file:line`, of each run of `length` lines of code that stands in more than one."""
    places = collections.defaultdict(list)
    for name, source in sources.items():
        lines = code_lines(source)
        for start in range(len(lines) - length + 1):
            run = tuple(line for _, line in lines[start : start + length])
            places[run].append(f"{name}:{lines[start][0]}")
    return sorted(found for found in places.values() if len(found) > 1)
