"""MkDocs hook: pages with the source of linked tests and benchmarks, the notebooks, and the help of each command.

A link such as `](../tests/flops/test_counting.py)` points outside the folder of the pages: the site gets a page with
the text of that file, and the link is rewritten. The line `<!-- commands -->` is replaced by the help of each command.
A notebook `notebooks/NAME.ipynb` has the page `notebooks/NAME.md`, with the outputs that it was saved with.
"""

import json
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from keras_committee.cli import cli

_NOTEBOOK_LINK = re.compile(r"\]\(((?:\.\./)*notebooks/[\w-]+)\.ipynb\)")
_LINK = re.compile(r"\]\((?:\.\./)+((?:benchmarks|keras_committee|recipes|tests)/[\w./-]+)\)")


def on_files(files: Files, /, *, config: Any) -> Files:
    """Add a page for each source file that a page links to."""
    linked = {name: page for page in files.documentation_pages() for name in _LINK.findall(page.content_string)}
    for name, page in sorted(linked.items()):
        file = Path(config.config_file_path).parent / name
        if not file.is_file():
            raise PluginError(f"{page.src_uri} links to {name}, which does not exist.")
        files.append(File.generated(config, f"source/{name}.md", content=_page(name, file.read_text())))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.removesuffix(".ipynb")
        files.append(File.generated(config, f"{name}.md", content=_notebook_page(notebook.content_string)))
    return files


def on_page_markdown(markdown: str, /, *, page: Any, **_: Any) -> str:
    """Rewrite the links to these pages and insert the commands' help."""
    up = "../" * page.file.src_uri.count("/")
    markdown = _NOTEBOOK_LINK.sub(r"](\1.md)", _LINK.sub(rf"]({up}source/\1.md)", markdown))
    return markdown.replace("<!-- commands -->", _commands())


def _notebook_page(content: str) -> str:
    """Return the Markdown of a notebook: text, code, and the outputs."""
    parts = []
    for cell in json.loads(content)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts += [f"```python\n{source}\n```", *map(_output, cell["outputs"])]
    return "\n\n".join(filter(None, parts)) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        lines = "".join(data["text/html"]).splitlines()
        return "\n".join(line for line in lines if line.strip())  # an empty line would end the HTML
    return f"```text\n{''.join(data['text/plain'])}\n```"


def _commands() -> str:
    return "\n\n".join(f"## {name}\n\n```text\n{_help(name)}\n```" for name in sorted(cli.commands))


def _help(name: str) -> str:
    top = click.Context(cli, info_name="keras-committee")
    return click.Context(cli.commands[name], info_name=name, parent=top, max_content_width=100).get_help()


def _page(name: str, text: str) -> str:
    # The fence is longer than any inside. Excluded from the search, which covers the guides.
    return f"---\ntitle: {name}\nsearch:\n  exclude: true\n---\n# {name}\n\n``````python\n{text}\n``````\n"
