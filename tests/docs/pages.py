"""Commands and Python blocks in README, the operator's pages and the guides."""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "deploy").glob("*.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SHELL = ("", "sh", "bash")
# Blocks without a language are commands, except listings that begin with one of these.
_LISTINGS = ("runs/<name>/", "saved_models/committee/")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    number: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}-{self.number}"

    def commands(self) -> list[list[str]]:
        """The words of each command, without comments; a trailing backslash continues a line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages."""
    found = [
        Block(page.relative_to(ROOT).as_posix(), number, match[2], match[3])
        for page in PAGES
        for number, match in enumerate(_FENCE.finditer(page.read_text()))
    ]
    return [block for block in found if block.language in languages]


def shell_blocks() -> list[Block]:
    return [block for block in blocks(*_SHELL) if not block.text.startswith(_LISTINGS)]


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def in_backticks(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?<=\S)\n(?=\S)", " ", prose(page)))
