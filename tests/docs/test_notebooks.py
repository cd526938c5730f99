"""The notebooks of the documentation run, and have the outputs of a run. `REWRITE_NOTEBOOKS=1` saves new outputs."""

import os
import re

import nbformat
import pytest
from pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def outputs(notebook):
    """The kinds of the outputs of each cell, and the lines of their text without numbers."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            text = "" if "image/png" in data else data.get("text/html", data.get("text/plain", ""))
            words = re.findall(r"[A-Za-z_][A-Za-z_-]+", re.sub(r"<[^>]*>|/\S*", " ", text))
            found.append((cell["id"], output["output_type"], sorted(data), words[:6]))
    return found


def without_progress(notebook):
    """Remove the empty outputs in which progress was displayed, and the log of the kernel."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell["outputs"] = [output for output in cell["outputs"] if is_result(output)]
            for output in cell["outputs"]:
                output["metadata"] = {}
            cell["metadata"], cell["execution_count"] = {}, None
        for output in cell.get("outputs", []):
            if output["output_type"] == "execute_result":
                output["execution_count"] = None
    return notebook


def is_result(output):
    is_log = output["output_type"] == "stream" and output["name"] == "stderr"
    return not is_log and output["output_type"] != "display_data"


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_has_the_outputs_of_a_run(file, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    saved = nbformat.read(file, as_version=4)
    notebook = nbformat.from_dict(saved)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    progress = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "display_data"
    ]
    assert progress  # was displayed, and removed at the end
    assert all(output["data"].get("text/html", "") == "" for output in progress)
    executed = without_progress(notebook)
    if os.environ.get("REWRITE_NOTEBOOKS"):
        nbformat.write(executed, file)
    assert outputs(executed) == outputs(nbformat.read(file, as_version=4))
