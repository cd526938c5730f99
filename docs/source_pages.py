"""How does a page link to a test or a benchmark, so that the link works on the site as it does in the repository?

A hook of mkdocs. A link such as `](../tests/test_flops.py)` leaves the pages' folder. The site gets a page with the text
of each file that is linked so, and the link is turned to it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\((?:\.\./)+((?:benchmarks|keras_committee|recipes|tests)/[\w./-]+)\)")


def on_files(files: Files, /, *, config: Any) -> Files:
    """Adds a page for each file that a page links to."""
    linked = {name: page for page in files.documentation_pages() for name in _LINK.findall(page.content_string)}
    for name, page in sorted(linked.items()):
        file = Path(config.config_file_path).parent / name
        if not file.is_file():
            raise PluginError(f"{page.src_uri} links to {name}, and there is no such file.")
        files.append(File.generated(config, f"source/{name}.md", content=_page(name, file.read_text())))
    return files


def on_page_markdown(markdown: str, /, *, page: Any, **_: Any) -> str:
    """Turns the links to these pages."""
    up = "../" * page.file.src_uri.count("/")
    return _LINK.sub(rf"]({up}source/\1.md)", markdown)


def _page(name: str, text: str) -> str:
    # A fence longer than any inside; excluded from the search, which is for what we explain.
    return f"---\ntitle: {name}\nsearch:\n  exclude: true\n---\n# {name}\n\n``````python\n{text}\n``````\n"
