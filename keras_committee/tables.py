"""Tables of members and committees for the terminal."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from keras_committee.costs import format_cost, unknown_cost_note

_REPORTED_SCORES = ("accuracy", "nll", "ece")
_MFLOPS_NOTE = "MFLOPs: 2 x multiply-adds / 1e6, for one image."
_QUARTILES = ("lower", "median", "upper")
_EDGE_WIDTH = 4  # characters that the outer border adds to a table
_SEPARATOR_WIDTH = 3  # a line and two blanks between two columns


def print_members(members: list[dict[str, Any]]) -> None:
    """Print the members of a recipe.

    Args:
        members: The `members` of `keras-committee describe --json`.
    """
    rows = [[*_member_cells(member), *_stochastic_depth_cells(member), *_memory_cells(member)] for member in members]
    columns = ["member", "name", "parameters", "MFLOPs", "expected depth", "expected saving"]
    note = (
        f"Estimated memory (from tensor shapes): one training step with batch {members[0]['batch_size']:,}, and "
        "inference with batch 1. "
    )
    print_table([*columns, "training memory", "inference memory"], rows, note)
    _print_unknown_costs(members)


def print_evaluation(result: dict[str, Any]) -> None:
    """Print the members and the committees of each size.

    Args:
        result: The content of `evaluation.json`.
    """
    scores = ["accuracy", "nll", "ece", "brier"]
    members = [[*_member_cells(member), *(f"{member[score]:.4f}" for score in scores)] for member in result["members"]]
    print_table(["member", "name", "parameters", "MFLOPs", "accuracy", "NLL", "ECE", "Brier"], members)
    _print_unknown_costs(result["members"])
    _print_latency(result["members"])
    committees = [
        [
            str(committee["size"]),
            str(committee["accuracy"]["subsets"]),
            format_cost(committee["mflops"]),
            f"{committee['accuracy']['min']:.4f} .. {committee['accuracy']['max']:.4f}",
            *(_format_mean_std(committee[score]) for score in scores),
        ]
        for committee in result["committees"]
    ]
    print_table(
        ["size", "subsets", "MFLOPs", "accuracy range", "accuracy", "NLL", "ECE", "Brier"],
        committees,
        "Mean ± standard deviation over the subsets of the members. ",
    )


def print_selection(selection: dict[str, Any]) -> None:
    """Print the selection, the best member and, for a cascade, the best committee.

    Args:
        selection: The content of `selection.json`.
    """
    report = selection["report"]
    rows = [_selection_row(f"selected {selection['kind']}", report)]
    if "cascade" in report:
        rows.append(_summary_row("best committee", report["cascade"]["committee"]))
    rows.append(_summary_row("best member", report["best_member"]))
    columns = ["", "members", "MFLOPs", "validation accuracy", "test accuracy", "test NLL", "test ECE"]
    print_table(columns, rows, "Selected on validation data; [95 % bootstrap interval]. ")
    for note in report.get("notes", ()):
        click.echo(f"{note}\n")


def print_table(columns: list[str], rows: list[list[str]], note: str = "") -> None:
    """Print a table, followed by `note` and, if there is a column "MFLOPs", the definition of MFLOPs.

    A table wider than the terminal is printed as one paragraph per row, so that no word or number is cut off. In a
    pipe or a file, each row is one line.

    Args:
        columns: Titles of the columns.
        rows: Cells of each row, one per column.
        note: Sentence below the table, ending with a blank.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    titles = [max(column.split(), key=len, default="") for column in columns] if sys.stdout.isatty() else columns
    widths = [max(map(_display_width, cells)) for cells in zip(titles, *rows, strict=True)]
    min_width = sum(widths) + _SEPARATOR_WIDTH * (len(columns) - 1)
    if not sys.stdout.isatty():
        console.width = min_width + _EDGE_WIDTH
    if min_width > console.width:
        click.echo("\n".join(_wrap_rows(columns, rows, console.width)))
    else:
        show_edge = min_width + _EDGE_WIDTH <= console.width
        table = Table(show_edge=show_edge, pad_edge=show_edge)
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column, min_width=width)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if footer := f"{note}{_MFLOPS_NOTE if 'MFLOPs' in columns else ''}".strip():
        click.echo(f"{footer}\n")


def _member_cells(member: dict[str, Any]) -> list[str]:
    return [str(member["index"]), member["name"], f"{member['parameters']:,}", format_cost(member["mflops"])]


def _print_unknown_costs(members: list[dict[str, Any]]) -> None:
    named = [(f"member {member['index']} ({member['name']})", member.get("uncounted", [])) for member in members]
    if note := unknown_cost_note(named):
        click.echo(f"{note}\n")


def _stochastic_depth_cells(member: dict[str, Any]) -> list[str]:
    if member["expected_depth"] is None:
        return ["-", "-"]
    saving = member["expected_saving"]
    return [f"{member['expected_depth']:.2f} blocks", "unknown" if saving is None else f"{saving:.1%} in training"]


def _memory_cells(member: dict[str, Any]) -> list[str]:
    return [_format_bytes(member["memory"][name]) for name in ("training", "inference")]


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _print_latency(members: list[dict[str, Any]]) -> None:
    rows = [
        [str(member["index"]), member["name"], str(timing["batch"]), *(f"{timing[name]:.2f}" for name in _QUARTILES)]
        for member in members
        for timing in member.get("latency", ())
    ]
    if rows:
        print_table(["member", "name", "images", "lower quartile", "median", "upper quartile"], rows, "Milliseconds. ")


def _format_mean_std(score: dict[str, float]) -> str:
    return f"{score['mean']:.4f} ± {score['std']:.4f}"


def _selection_row(name: str, report: dict[str, Any]) -> list[str]:
    test = report["test"]
    return [
        name,
        _format_names(report["members"]),
        format_cost(report["mflops"]),
        f"{report['validation']['accuracy']['value']:.4f}",
        *(
            f"{test[score]['value']:.4f} [{test[score]['low']:.4f}, {test[score]['high']:.4f}]"
            for score in _REPORTED_SCORES
        ),
    ]


def _summary_row(name: str, summary: dict[str, Any]) -> list[str]:
    return [
        name,
        _format_names(summary["members"]),
        format_cost(summary["mflops"]),
        f"{summary['validation']['accuracy']:.4f}",
        *(f"{summary['test'][score]:.4f}" for score in _REPORTED_SCORES),
    ]


def _format_names(members: list[dict[str, Any]]) -> str:
    """Return `"wrn_16_1 (0, 2), wrn_16_2 (1)"`: the names of the members, with their indices."""
    indices_by_name: dict[str, list[str]] = {}
    for member in members:
        suffix = f" x{member['share']}" if member["share"] > 1 else ""
        indices_by_name.setdefault(member["name"], []).append(f"{member['index']}{suffix}")
    return ", ".join(f"{name} ({', '.join(member_indices)})" for name, member_indices in indices_by_name.items())


def _display_width(text: str) -> int:
    """Return the width of `text` in terminal columns; some characters take two."""
    from rich.cells import cell_len

    return cell_len(text)


def _wrap_rows(columns: list[str], rows: list[list[str]], width: int) -> Iterator[str]:
    """Yield the lines of one paragraph per row, wrapped only between cells."""
    for row in rows:
        title = f"{columns[0]} {row[0]}".strip()
        line = f"{title}:" if title else " "
        for column, cell in zip(columns[1:], row[1:], strict=True):
            field = f" {column} {cell}".rstrip() + ";"
            if len(line) + len(field) > width and line.strip():
                yield line
                line = " "
            line += field if cell else ""
        yield f"{line.rstrip(';')}\n"
