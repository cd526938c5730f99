"""Tables of members and committees for terminals, files and notebooks."""

import contextlib
import dataclasses
import html
import io
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from statistics import fmean
from typing import Any

import click

from keras_committee.costs import format_cost, unknown_cost_note

_MAX_CLASS_ROWS = 20  # of more classes only the hardest are printed
_HARDEST_CLASSES = 10
_MAX_MATRIX_COLUMNS = 12  # in 80 terminal columns
_MATRIX_CELL_WIDTH, _MIN_LABEL_WIDTH = 6, 8
_MFLOPS_NOTE = "MFLOPs: 2 x multiply-adds / 1e6, for one image."
_OOD_SCORES = ("auroc", "fpr95")
_QUARTILES = ("lower", "median", "upper")
_EDGE_WIDTH = 4  # characters that the outer border adds to a table
_HARD_BLANK = "\ue000"  # of private use: stands for a blank at which no line ends
_SEPARATOR_WIDTH = 3  # a line and two blanks between two columns


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: Titles of the columns.
        rows: Cells of each row, one per column.
        note: Sentence below the table, ending with a blank.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def footer(self) -> str:
        """The note and, if there is a column "MFLOPs", the definition of MFLOPs."""
        return f"{self.note}{_MFLOPS_NOTE if 'MFLOPs' in self.columns else ''}".strip()


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Lines of text whose characters are aligned, which are never wrapped."""

    text: str


Block = Table | Aligned | str  # a string is a paragraph


def print_blocks(blocks: Iterable[Block]) -> None:
    """Print tables and paragraphs to stdout, as `print_table` and `print_text` do."""
    for block in blocks:
        if isinstance(block, Table):
            print_table(block.columns, block.rows, block.note)
        elif isinstance(block, Aligned):
            click.echo(block.text)
        else:
            print_text(block)


def format_blocks(blocks: Iterable[Block]) -> str:
    """Return what `print_blocks` prints to a file."""
    with io.StringIO() as stream, contextlib.redirect_stdout(stream):
        print_blocks(blocks)
        return stream.getvalue().rstrip()


def blocks_to_html(blocks: Iterable[Block]) -> str:
    """Return tables and paragraphs as HTML, for a notebook; all text is escaped."""
    return "\n".join(part for block in blocks for part in _html_parts(block))


def _html_parts(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield "<table>\n<thead>" + _html_row("th", block.columns) + "</thead>\n<tbody>"
        yield from (_html_row("td", row) for row in block.rows)
        yield "</tbody>\n</table>"
        yield from (f"<p><small>{html.escape(text)}</small></p>" for text in [block.footer] if text)
    elif isinstance(block, Aligned):
        yield f"<pre>{html.escape(block.text)}</pre>"
    elif text := block.strip():
        yield f"<p>{html.escape(text)}</p>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def member_blocks(members: list[dict[str, Any]]) -> Iterator[Block]:
    """Yield a table of the members of a recipe: cost, memory, and depth under stochastic depth.

    Args:
        members: The `members` of `keras-committee describe --json`.
    """
    has_depth = any(member["expected_depth"] is not None for member in members)
    rows = [
        [
            *_member_cells(member),
            *(_stochastic_depth_cells(member) if has_depth else []),
            *_memory_cells(member),
        ]
        for member in members
    ]
    columns = ["member", "name", "parameters", "MFLOPs", *(["expected depth", "expected saving"] if has_depth else [])]
    note = (
        f"Estimated memory (from tensor shapes): one training step with batch {members[0]['batch_size']:,}, and "
        "inference with batch 1. "
    )
    yield Table([*columns, "training memory", "inference memory"], rows, note)
    yield from _unknown_costs(members)


def evaluation_blocks(result: dict[str, Any]) -> Iterator[Block]:
    """Yield tables of the members, the committees of each size, and the classes.

    Args:
        result: The content of `evaluation.json`.
    """
    has_top_5 = "top_5_accuracy" in result["members"][0]
    members = [
        [
            str(member["index"]),
            member["name"],
            format_cost(member["mflops"]),
            format_accuracy(member["accuracy"], member["accuracy_interval"]),
            *([f"{member['top_5_accuracy']:.4f}"] if has_top_5 else []),
            f"{member['nll']:.4f}",
            *([] if has_top_5 else [f"{member['ece']:.4f}"]),
        ]
        for member in result["members"]
    ]
    last_columns = ["top-5", "NLL"] if has_top_5 else ["NLL", "ECE"]  # more would not fit 80 columns
    note = _interval_note(result) + _epochs_note(result["members"])
    yield Table(["member", "name", "MFLOPs", "accuracy", *last_columns], members, note)
    yield from _unknown_costs(result["members"])
    yield from _latency_tables(result["members"])
    committees = [
        [
            str(committee["size"]),
            str(committee["accuracy"]["subsets"]),
            format_cost(committee["mflops"]),
            format_accuracy(committee["accuracy"]["mean"], committee["accuracy_interval"]),
            f"{committee['accuracy']['std']:.4f}" if committee["accuracy"]["subsets"] > 1 else "-",
            f"{committee['nll']['mean']:.4f}",
            f"{committee['ece']['mean']:.4f}",
        ]
        for committee in result["committees"]
    ]
    yield Table(
        ["size", "subsets", "MFLOPs", "accuracy", "std", "NLL", "ECE"],
        committees,
        f"Means over the subsets of the members, and the standard deviation over them. {_interval_note(result)}",
    )
    yield from _out_of_fold_text(result)
    yield _selective_table(result)
    yield _class_table(result)
    yield from _confusion_matrix(result)


def _selective_table(result: dict[str, Any]) -> Table:
    """Return how many answers can be accepted at an error rate."""
    names = ("aurc", "coverage_at_1_percent_risk", "coverage_at_5_percent_risk")

    def cells(scores: dict[str, Any]) -> list[str]:
        aurc, *coverages = (scores[name] for name in names)
        return [f"{aurc:.5f}", *(f"{100 * coverage:.1f} %" for coverage in coverages)]

    rows = [[f"member {member['index']}", *cells(member)] for member in result["members"]]
    for committee in result["committees"][1:]:
        rows.append([f"committee of {committee['size']}", *cells({name: committee[name]["mean"] for name in names})])
    if "selected" in result:
        rows.append([f"selected {result['selected']['kind']}", *cells(result["selected"])])
    note = "AURC: mean error rate over all numbers of most confident answers. "
    return Table(["", "AURC", "accepted at 1 % error", "accepted at 5 % error"], rows, note)


def selection_blocks(selection: dict[str, Any]) -> Iterator[Block]:
    """Yield the selection, the best member and, for a cascade, the best committee, with the members of each.

    Args:
        selection: The content of `selection.json`.
    """
    report = selection["report"]
    kind = _selected_kind(selection)
    committees = {f"selected {kind}": report}
    if "cascade" in report:
        committees["best committee"] = report["cascade"]["committee"]
    committees["best member"] = report["best_member"]
    rows = [_selection_row(name, committee) for name, committee in committees.items()]
    columns = ["", "MFLOPs", "validation accuracy", "test accuracy", "test NLL"]
    examples = report["examples"]
    note = (
        f"Selected on {examples['validation']:,} validation images; [95 % interval] over the {examples['test']:,} test "
        "images. "
    )
    yield Table(columns, rows, note)
    for name, committee in committees.items():
        yield f"{name}: {_format_names(committee['members'])}"
    yield ""
    for note in report.get("notes", ()):
        yield f"{note}\n"


def training_table(members: list[dict[str, Any]]) -> Table:
    """Return the members at the end of training.

    Args:
        members: The result of `evaluation.training_summary`.
    """
    rows = [
        [
            str(member["index"]),
            f"{member['epoch']} of {member['epochs']}",
            _format_optional_interval(member["validation_accuracy"], member["accuracy_interval"]),
            f"{member['validation_nll']:.4f}",
            format_duration(member["seconds"]),
        ]
        for member in members
    ]
    columns = ["member", "epoch kept", "validation accuracy", "validation NLL", "time"]
    return Table(columns, rows, "Accuracy with its 95 % interval over the images. ")


def robustness_blocks(result: dict[str, Any]) -> Iterator[Block]:
    """Yield tables of the accuracy on corrupted images and of the detection of out-of-distribution images.

    Args:
        result: The content of `robustness.json`.
    """
    corruptions = result["corruptions"]
    severities = sorted({row["severity"] for row in corruptions})
    rows = [["none", *[""] * len(severities), *_accuracy_cells([result["clean"]])]]
    for kind in dict.fromkeys(row["kind"] for row in corruptions):
        rows.append(_corruption_cells(kind, [row for row in corruptions if row["kind"] == kind], severities))
    rows.append(_corruption_cells("mean", corruptions, severities))
    note = "Accuracy of the committee by severity, and on average over the severities, in %. "
    yield Table(["corruption", *map(str, severities), "mean", "mean member"], rows, note)
    ood_rows = [
        [scores["source"], str(scores["examples"])]
        + [f"{scores[measure][score]:.3f}" for measure in ("confidence", "mutual_information") for score in _OOD_SCORES]
        for scores in result["foreign"]
    ]
    if ood_rows:
        columns = [f"{score.upper()} {measure}" for measure in ("confidence", "MI") for score in _OOD_SCORES]
        note = "Detection of OOD images by the confidence of the committee and by mutual information (MI). "
        yield Table(["OOD images", "examples", *columns], ood_rows, note)


def _corruption_cells(name: str, rows: list[dict[str, Any]], severities: list[int]) -> list[str]:
    """Return the name, the accuracy of the committee by severity, and the means of committee and members."""
    by_severity = [[row for row in rows if row["severity"] == severity] for severity in severities]
    return [name, *(_accuracy_cells(group)[0] for group in by_severity), *_accuracy_cells(rows)]


def _accuracy_cells(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the mean accuracy of the committee and that of its members, in %; blanks without rows."""
    if not rows:
        return "", ""
    committee = fmean(row["committee"]["accuracy"] for row in rows)
    member = fmean(member["accuracy"] for row in rows for member in row["members"])
    return f"{100 * committee:.1f}", f"{100 * member:.1f}"


def search_table(members: list[dict[str, Any]]) -> Table:
    """Return a table of the members of a search, the lowest validation NLL first, then those that did not finish.

    Args:
        members: The `members` of the result of `search`, at least one.
    """

    def nll(member: dict[str, Any]) -> float:
        return math.inf if member["validation_nll"] is None else member["validation_nll"]

    parameters = list(members[0]["parameters"])
    rows = [
        [
            PurePath(member["run"]).name.removeprefix("member-"),
            *(format_value(member["parameters"][name]) for name in parameters),
            *_search_scores(member),
            format_duration(60 * member["minutes"]),
        ]
        for member in sorted(members, key=nll)
    ]
    note = "Validation scores, accuracy with its 95 % interval over the images. Gain: decrease of the committee's NLL. "
    return Table(["member", *parameters, "accuracy", "NLL", "gain", "time"], rows, note)


def _search_scores(member: dict[str, Any]) -> list[str]:
    if member["gain"] is None:
        return ["-", "-", "-"]
    accuracy = format_accuracy(member["validation_accuracy"], member["accuracy_interval"])
    return [accuracy, f"{member['validation_nll']:.4f}", f"{member['gain']:.4f}"]


def format_value(value: Any) -> str:
    """Format the value of a recipe parameter; floats have four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_duration(seconds: float | None) -> str:
    """Format seconds: "42 s", "12 min", "3.4 h"; "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print a table, followed by `note` and, if there is a column "MFLOPs", the definition of MFLOPs.

    Where a table is wider than the terminal, its titles are wrapped between words; if that is not enough, it is printed
    as one paragraph per row, so that no word or number is cut off. In a pipe or a file, each row is one line.

    Args:
        columns: Titles of the columns.
        rows: Cells of each row, one per column.
        note: Sentence below the table, ending with a blank.
    """
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(markup=False, emoji=False, highlight=False, force_jupyter=False)
    widths = _column_widths(columns, rows)
    if not sys.stdout.isatty():
        console.width = _table_width(widths) + _EDGE_WIDTH
    elif _table_width(widths) > console.width:
        # Not left to Rich, which shrinks the widest columns first and cuts the table off where these cannot shrink.
        widths = _column_widths([max(column.split(), key=len, default="") for column in columns], rows)
    if _table_width(widths) > console.width:
        click.echo("\n".join(_wrap_rows(columns, rows, console.width)))
    else:
        show_edge = _table_width(widths) + _EDGE_WIDTH <= console.width
        table = RichTable(show_edge=show_edge, pad_edge=show_edge)
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column, width=width)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if footer := Table(columns, rows, note).footer:
        print_text(f"{footer}\n")


def print_text(text: str, err: bool = False) -> None:
    """Print lines of text at once; on a terminal those that are too long are wrapped, see `wrap_text`.

    Args:
        text: One or more lines.
        err: Whether to print to stderr.
    """
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        text = wrap_text(text, shutil.get_terminal_size().columns)
    print(text, file=stream, flush=True)


def wrap_text(text: str, width: int) -> str:
    """Return lines of text, those that are too long wrapped between words.

    A command at the end of a line is wrapped with backslashes, so that it can be copied.

    Args:
        text: One or more lines.
        width: Number of terminal columns.
    """
    return "\n".join(wrapped for line in text.split("\n") for wrapped in _wrap_line(line, width))


def _wrap_line(line: str, width: int) -> list[str]:
    if _display_width(line) <= width:
        return [line]
    prose, separator, command = line.rpartition("keras-committee ")
    if separator and (not prose.strip() or prose.endswith(": ")):
        return _wrap_command(prose, separator + command, width)
    return _wrap_words(line, width)


def _wrap_words(line: str, width: int) -> list[str]:
    column = re.match(r"\s*(?:\S+\s{2,})?", line)  # the indentation, or the first column of a list
    indent = " " * len(column.group() if column else "")
    # A command in backticks stays on one line, so that it can be copied.
    line = re.sub(r"`[^`]*`", lambda quoted: quoted.group().replace(" ", _HARD_BLANK), line)
    wrapped = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
    return [part.replace(_HARD_BLANK, " ") for part in wrapped] or [""]


def _wrap_command(prose: str, command: str, width: int) -> list[str]:
    """Return the lines of a command after `prose`, wrapped between the words of a shell."""
    lines = _wrap_words(prose, width) if prose.strip() else []
    words = re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", command)
    if lines and _display_width(" ".join([lines[-1], *words[:2]])) <= width - 2:
        current = lines.pop() + " " + words.pop(0)
    else:
        current = prose[: len(prose) - len(prose.lstrip())] + words.pop(0)
    for word in words:
        if _display_width(current) + 1 + _display_width(word) > width - 2:
            lines.append(f"{current} \\")
            current = f"    {word}"
        else:
            current += f" {word}"
    return [*lines, current]


def _column_widths(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_display_width, cells)) for cells in zip(titles, *rows, strict=True)]


def _table_width(widths: list[int]) -> int:
    """Return the width of a table without its edge."""
    return sum(widths) + _SEPARATOR_WIDTH * (len(widths) - 1)


def _member_cells(member: dict[str, Any]) -> list[str]:
    return [str(member["index"]), member["name"], f"{member['parameters']:,}", format_cost(member["mflops"])]


def _unknown_costs(members: list[dict[str, Any]]) -> Iterator[str]:
    named = [(f"member {member['index']} ({member['name']})", member.get("uncounted", [])) for member in members]
    if note := unknown_cost_note(named):
        yield f"{note}\n"


def _stochastic_depth_cells(member: dict[str, Any]) -> list[str]:
    if member["expected_depth"] is None:
        return ["-", "-"]
    saving = member["expected_saving"]
    return [f"{member['expected_depth']:.2f} blocks", "unknown" if saving is None else f"{saving:.1%} in training"]


def _memory_cells(member: dict[str, Any]) -> list[str]:
    return [_format_bytes(member["memory"][name]) for name in ("training", "inference")]


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _latency_tables(members: list[dict[str, Any]]) -> Iterator[Table]:
    rows = [
        [str(member["index"]), member["name"], str(timing["batch"]), *(f"{timing[name]:.2f}" for name in _QUARTILES)]
        for member in members
        for timing in member.get("latency", ())
    ]
    if rows:
        yield Table(["member", "name", "images", "lower quartile", "median", "upper quartile"], rows, "Milliseconds. ")


def format_accuracy(accuracy: float, interval: dict[str, float]) -> str:
    """Format an accuracy with its interval: "0.9167 [0.805, 0.967]"."""
    return f"{accuracy:.4f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _format_optional_interval(accuracy: float, interval: dict[str, float] | None) -> str:
    return f"{accuracy:.4f}" if interval is None else format_accuracy(accuracy, interval)


def _interval_note(result: dict[str, Any]) -> str:
    return f"Accuracy with its 95 % interval over the {result['examples']:,} {result['split']} images. "


def _out_of_fold_text(result: dict[str, Any]) -> Iterator[str]:
    if unseen := result.get("out_of_fold"):
        images = f"{unseen['images']:,} of {unseen['training_images']:,} training images"
        accuracy = format_accuracy(unseen["accuracy"], unseen["accuracy_interval"])
        members = f"{unseen['members_per_image']:.1f} members that were not trained on it (mean)"
        yield f"Out-of-fold accuracy {accuracy} on {images}, each predicted by the {members}."


def _class_table(result: dict[str, Any]) -> Table:
    classes, head = result["per_class"], result["head"].replace("_", " ")
    note = f"Of the committee of all members ({head})"
    if "top_5_accuracy" in result:
        note += f", whose top-5 accuracy is {result['top_5_accuracy']:.4f}"
    if len(classes) > _MAX_CLASS_ROWS:
        note += f"; the {_HARDEST_CLASSES} of {len(classes)} classes with the lowest recall"
        known = [row for row in classes if row["recall"] is not None]
        classes = sorted(known, key=lambda row: row["recall"])[:_HARDEST_CLASSES]
    rows = [
        [row["class"], f"{row['examples']:,}", *(_format_optional(row[score]) for score in ("precision", "recall"))]
        for row in classes
    ]
    return Table(["class", "images", "precision", "recall"], rows, f"{note}. ")


def _confusion_matrix(result: dict[str, Any]) -> Iterator[Block]:
    """Yield the percentages of each true class, those of correct predictions in brackets; few classes only."""
    matrix, names = result.get("confusion_matrix"), [row["class"] for row in result["per_class"]]
    if matrix is None or len(names) > _MAX_MATRIX_COLUMNS:
        return
    labels = [f"{index} {name}" for index, name in enumerate(names)]
    width = max(_MIN_LABEL_WIDTH, min(max(map(_display_width, labels)), 80 - _MATRIX_CELL_WIDTH * len(names)))
    yield "Confusion matrix: % of each true class (row) by predicted class (column)"
    lines = [" " * width + "".join(f"{index} ".rjust(_MATRIX_CELL_WIDTH) for index in range(len(names)))]
    for row, label in enumerate(labels):
        cells = [_matrix_cell(count, sum(matrix[row]), row == column) for column, count in enumerate(matrix[row])]
        lines.append((_fit(label, width) + "".join(cells)).rstrip())
    yield Aligned("\n".join([*lines, ""]))


def _matrix_cell(count: int, total: int, is_diagonal: bool) -> str:
    percentage = f"{100 * count / total:.0f}" if total else "-"
    if is_diagonal:
        return f"[{percentage}]".rjust(_MATRIX_CELL_WIDTH)
    return (f"{percentage} " if count else "").rjust(_MATRIX_CELL_WIDTH)


def _fit(text: str, width: int) -> str:
    """Return the text with blanks up to a width in terminal columns; the end of a longer one is an ellipsis."""
    from rich.cells import set_cell_size

    return set_cell_size(text, width) if _display_width(text) <= width else f"{set_cell_size(text, width - 1)}…"


def _epochs_note(members: list[dict[str, Any]]) -> str:
    """Return a sentence with the epoch whose weights each member has; "" without histories."""
    epochs = [f"{member['epoch']} of {member['epochs']}" for member in members if "epoch" in member]
    if not epochs or len(epochs) < len(members):
        return ""
    if len(set(epochs)) == 1:
        return f"Epoch kept: {epochs[0]}. "
    named = (f"{epoch} (member {member['index']})" for epoch, member in zip(epochs, members, strict=True))
    return f"Epochs kept: {', '.join(named)}. "


def _format_optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _selected_kind(selection: dict[str, Any]) -> str:
    """Return the kind of what was selected; a cascade of one stage, from which no image exits early, is a committee."""
    if len(selection["stages"] or ()) > 1:
        return "cascade"
    return "committee" if len(selection["report"]["members"]) > 1 else "member"


def _selection_row(name: str, committee: dict[str, Any]) -> list[str]:
    validation, test = (_score_values(committee[split]) for split in ("validation", "test"))
    return [
        name,
        format_cost(committee["mflops"]),
        f"{validation['accuracy']:.4f}",
        format_accuracy(test["accuracy"], committee["accuracy_interval"]["test"]),
        f"{test['nll']:.4f}",
    ]


def _score_values(scores: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a committee, which have bootstrap intervals in the selected one."""
    return {name: score["value"] if isinstance(score, dict) else score for name, score in scores.items()}


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


def _wrap_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
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
