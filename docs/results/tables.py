"""The tables of docs/results.md that come from recorded results.

    python docs/results/tables.py

A folder beside this file holds `evaluation.json`, the `selection*.json` files and `history/<member>.jsonl` of a run, as
the commands wrote them, without its weights; `figure1*.json` are written by `benchmarks/figure1.py`, `levers.jsonl` by
`benchmarks/gpu/speed_net.py`.
"""

import json
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent


def figure1_committees(name: str) -> str:
    """Return the table of the committees of each width: the sizes 1, 2, 3 and the largest."""
    lines = [
        "| committee | MFLOPs | test accuracy, mean ± std over subsets | arithmetic mean | NLL | ECE |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for width, result in _figure1(name)["widths"].items():
        rows = result["rows"]
        for row in (row for row in rows if row["size"] in (1, 2, 3, len(rows))):
            subsets = f" ({row['subsets']} subsets)" if row["subsets"] > 1 and row["size"] > 1 else ""
            deviation = f" ± {100 * row['std']:.2f}" if row["subsets"] > 1 else ""
            arithmetic = _percent(row["arithmetic_accuracy"]) if row["size"] > 1 else ""
            lines.append(
                f"| {row['size']} x WRN-16-{width}{subsets} | {row['mflops']:.0f} | "
                f"{100 * row['accuracy']:.2f}{deviation} % | {arithmetic} | {row['nll']:.3f} | {row['ece']:.3f} |"
            )
    return "\n".join(lines)


def figure1_comparisons(*names: str) -> str:
    """Return the table of the differences between committees, one column for each file."""
    documents = [_figure1(name) for name in names]
    epochs = [document["widths"]["1"]["epochs"] for document in documents]
    columns = "".join(f" after {count} epochs, points |" for count in epochs)
    lines = [f"| difference in accuracy |{columns} multiply-adds |", f"| --- |{' ---: |' * len(names)} ---: |"]
    for rows in zip(*(document["comparisons"] for document in documents), strict=True):
        cells = "".join(f" {_interval(row)} |" for row in rows)
        lines.append(f"| {rows[0]['name']} |{cells} {100 * rows[0]['cost_ratio']:.0f} % |")
    return "\n".join(lines)


def figure1_cascades(name: str) -> str:
    """Return the table of the cascades of each width."""
    lines = [
        "| cascade of equal members | threshold | MFLOPs (mean) | test accuracy | its committee "
        "| multiply-adds saved |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for width, result in _figure1(name)["widths"].items():
        for row in result["cascades"]:
            saving = row["size"] / row["members_used"]
            lines.append(
                f"| {row['size']} x WRN-16-{width} | {row['threshold']:.2f} | {row['mflops']:.0f} | "
                f"{_percent(row['accuracy'])} | {_percent(row['committee_accuracy'])} | {saving:.2f} times |"
            )
    return "\n".join(lines)


def figure1_mixed(name: str) -> str:
    """Return the table of mixed widths against one width at equal cost."""
    lines = [
        "| within MFLOPs | one width | test accuracy | mixed widths | test accuracy | mixed minus one width, points |",
        "| ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for row in sorted(_figure1(name)["mixed"], key=lambda row: row["budget"]):
        cells = []
        for side in ("pure", "mixed"):
            members = (f"{count} x -{width}" for width, count in row[side]["members"].items() if count)
            cells += [", ".join(members), _percent(row[side]["accuracy"])]
        lines.append(f"| {row['budget']:.0f} | {' | '.join(cells)} | {_interval(row)} |")
    return "\n".join(lines)


def levers() -> str:
    """Return the table of the parts of the speed net: accuracy with the part changed, and the difference.

    The interval of the difference is 1.96 standard errors of the seeds on both sides.
    """
    rows = [json.loads(line) for line in (RESULTS / "cifar_fast/levers.jsonl").read_text().splitlines()]
    base = next(np.array(row["test"]) for row in rows if row["variant"] == "all")
    lines = [
        "| variant | test accuracy, mean ± std | committee of the three | difference to all, points |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: (row["variant"] != "all", -np.mean(row["test"]))):
        test = np.array(row["test"])
        error = np.sqrt(test.var(ddof=1) / len(test) + base.var(ddof=1) / len(base))
        difference = "" if row["variant"] == "all" else f"{100 * (test.mean() - base.mean()):+.2f} ± {196 * error:.2f}"
        lines.append(
            f"| {row['variant']} | {100 * test.mean():.2f} ± {100 * test.std(ddof=1):.2f} % | "
            f"{_percent(row['test_committee'])} | {difference} |"
        )
    return "\n".join(lines)


def gradients(constant: str, stochastic: str) -> str:
    """Return the table of the gradients of the blocks, stochastic depth relative to constant depth.

    Each ratio is the geometric mean over the blocks of a third of the network and over the epochs that both sides have.
    """
    sides = [_histories(name) for name in (constant, stochastic)]
    common = min(len(history) for side in sides for history in side)
    depth = len(sides[0][0][0]["mean_abs_gradients"])
    thirds = [range(start, start + depth // 3) for start in range(0, depth, depth // 3)]
    header = " | ".join(f"blocks {third[0] + 1} to {third[-1] + 1}" for third in thirds)
    lines = [f"| epochs | seed | {header} |", "| --- | ---: |" + " ---: |" * len(thirds)]
    for first, last in ((1, 20), (21, common)):
        for seed in range(len(sides[0])):
            logs = [
                np.log([row["mean_abs_gradients"] for row in side[seed][first - 1 : last]]).mean(axis=0)
                for side in sides
            ]
            ratios = " | ".join(f"{np.exp((logs[1] - logs[0])[third].mean()):.2f}" for third in thirds)
            lines.append(f"| {first} to {last} | {seed} | {ratios} |")
    return "\n".join(lines)


def epochs(*names: str, chosen: tuple[int, ...]) -> str:
    """Return the table of the validation scores of two runs at some epochs, a cell for each run: its members."""
    runs = [_histories(name) for name in names]
    lines = [
        "| epoch |" + "".join(f" {name.replace('_', ' ')}: accuracy | ECE |" for name in names),
        "| ---: |" + " ---: | ---: |" * len(names),
    ]
    for epoch in chosen:
        cells = []
        for run in runs:
            rows = [history[epoch - 1] for history in run if len(history) >= epoch]
            cells.append(", ".join(_percent(row["validation_accuracy"]) for row in rows))
            cells.append(", ".join(f"{row['validation_ece']:.3f}" for row in rows))
        lines.append(f"| {epoch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def committees(name: str) -> str:
    """Return the table of the members and of the committees of each size."""
    evaluation = json.loads((RESULTS / name / "evaluation.json").read_text())
    lines = ["| committee | MFLOPs | test accuracy | NLL | ECE |", "| --- | ---: | ---: | ---: | ---: |"]
    for member in evaluation["members"]:
        interval = member["accuracy_interval"]
        lines.append(
            f"| member {member['index']} | {member['mflops']:.0f} | {_percent(member['accuracy'])} "
            f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}] | {member['nll']:.3f} | {member['ece']:.3f} |"
        )
    for committee in evaluation["committees"]:
        subsets = committee["accuracy"]["subsets"]
        title = "mean member" if committee["size"] == 1 else f"{committee['size']} members"
        lines.append(_committee_row(f"{title}{f' ({subsets} subsets)' if subsets > 1 else ''}", committee))
    return "\n".join(lines)


def student(name: str, teacher: str) -> str:
    """Return the table of a student beside a member and the committee of its teacher."""
    own, theirs = (json.loads((RESULTS / run / "evaluation.json").read_text()) for run in (name, teacher))
    rows = {
        "mean member of the committee": theirs["committees"][0],
        "student": own["committees"][0],
        f"committee of {theirs['committees'][-1]['size']}, its teacher": theirs["committees"][-1],
    }
    lines = ["| network | MFLOPs | test accuracy | NLL | ECE |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [_committee_row(title, row) for title, row in rows.items()]
    return "\n".join(lines)


def cascades(name: str) -> str:
    """Return the table of the cascades that `select` found, each beside its committee."""
    lines = [
        "| cascade | members run: images | MFLOPs (mean) | test accuracy | its committee | multiply-adds saved | "
        "times the images/s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for file in sorted((RESULTS / name).glob("selection*.json")):
        report = json.loads(file.read_text())["report"]
        cascade, committee = report["cascade"], report["cascade"]["committee"]
        exits = ", ".join(f"{stage['members']}: {100 * stage['rate']:.1f} %" for stage in cascade["test"]["exits"])
        latency = cascade.get("latency")
        faster = f"{latency['committee_measured_ms'] / latency['measured_ms']:.2f}" if latency else ""
        title = file.stem.removeprefix("selection").strip("_").replace("_", " ") or "default"
        lines.append(
            f"| {title} | {exits} | {cascade['test']['mflops']:.0f} | {_percent(cascade['test']['accuracy'])} | "
            f"{_percent(committee['test']['accuracy'])} | {committee['mflops'] / cascade['test']['mflops']:.2f} times"
            f" | {faster} |"
        )
    return "\n".join(lines)


def cascade_choice(*names: str) -> str:
    """Return the table of `benchmarks/cascade_choice.py`, a row for each pool and number of images."""
    lines = [
        "| members | images chosen with | by the labels alone: points lost on others | times cheaper "
        "| smoothed: points lost on others | times cheaper |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        document = json.loads((RESULTS / "cascade_choice" / f"{name}.json").read_text())
        cells = [" and ".join(f"`{run}`" for run in document["runs"]), f"{document['images']:,}"]
        for row in document["means"]:
            cells.append(f"{-row['points_on_others']:.2f} ± {row['points_on_others_std']:.2f}")
            cells.append(f"{row['times_cheaper']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def depths(*names: str) -> str:
    """Return the table of the test scores of networks of constant and stochastic depth: a row for each seed."""
    lines = [
        "| network | seed | test error | NLL | ECE | validation error |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for name in names:
        files = sorted((RESULTS / name).glob("evaluation*.json"))
        for seed, (file, history) in enumerate(zip(files, _histories(name), strict=True)):
            (member,) = json.loads(file.read_text())["members"]
            interval = member["accuracy_interval"]
            lines.append(
                f"| {name.replace('_', ' ')} | {seed} | {_percent(1 - member['accuracy'])} "
                f"[{100 * (1 - interval['high']):.1f}, {100 * (1 - interval['low']):.1f}] | {member['nll']:.3f} | "
                f"{member['ece']:.3f} | {_percent(1 - history[-1]['validation_accuracy'])} |"
            )
    return "\n".join(lines)


def implicit_ensemble(name: str) -> str:
    """Return the table of `benchmarks/implicit_ensemble.py` for the first member of each seed."""
    lines = ["| | test accuracy | NLL | ECE |", "| --- | ---: | ---: | ---: |"]
    files = sorted((RESULTS / name).glob("implicit_ensemble*.json"))
    for rows in zip(*(json.loads(file.read_text())["rows"] for file in files), strict=True):
        size, head = rows[0]["subnetworks"], rows[0].get("head", "").replace("_", " ")
        if size == 1 and head != "geometric mean":  # one network is its own mean
            continue
        title = ("whole network", "1 subnetwork")[size] if size < 2 else f"{size} subnetworks, {head}"
        groups = f" ({rows[0]['groups']} groups)" if rows[0].get("groups", 1) > 1 else ""
        deviations = [f" ± {100 * row['accuracy_std']:.2f}" if "accuracy_std" in row else "" for row in rows]
        accuracies = [
            f"{100 * row['accuracy']:.2f}{deviation} %" for row, deviation in zip(rows, deviations, strict=True)
        ]
        scores = (", ".join(f"{row[score]:.3f}" for row in rows) for score in ("nll", "ece"))
        lines.append(f"| {title}{groups} | {', '.join(accuracies)} | {' | '.join(scores)} |")
    return "\n".join(lines)


def prediction_sets(name: str) -> str:
    """Return the table of promised against observed coverage: one row for each promise and selection."""
    rows = json.loads((RESULTS / name / "promises.json").read_text())["rows"]
    lines = [
        "| promised | sets of | LAC: observed | classes per set | APS: observed | classes per set | RAPS: observed | "
        "classes per set |",
        "| ---: | --- | --- | ---: | --- | ---: | --- | ---: |",
    ]
    for promised in dict.fromkeys(each["promised"] for each in rows[0]["sets"]):
        for row in rows:
            by_method = {each["method"]: each for each in row["sets"] if each["promised"] == promised}
            cells = (
                f"{each['observed']:.4f} [{each['interval']['low']:.3f}, {each['interval']['high']:.3f}] | "
                f"{each['mean_set_size']:.2f}"
                for each in (by_method[method] for method in ("lac", "aps", "raps"))
            )
            lines.append(f"| {promised:g} | {row['name'].replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accepted_answers(name: str) -> str:
    """Return the table of the answers that can be accepted, and of what was promised: one row for each selection."""
    rows = json.loads((RESULTS / name / "promises.json").read_text())["rows"]
    lines = [
        "| | MFLOPs (mean) | test accuracy | AURC | accepted at 1 % error | at 5 % | promised 1 %: accepted, error | "
        "promised 5 %: accepted, error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        found = [f"{100 * each['coverage_at_risk']:.1f} %" for each in row["accepted"]]
        promised = [
            f"{100 * each['accepted']:.1f} %, {100 * each['risk']:.2f} "
            f"[{100 * each['risk_interval']['low']:.2f}, {100 * each['risk_interval']['high']:.2f}] %"
            if "threshold" in each
            else "none"
            for each in row["accepted"]
        ]
        lines.append(
            f"| {row['name'].replace('_', ' ')} | {row['mflops']:.0f} | {_percent(row['accuracy'])} | "
            f"{row['aurc']:.4f} | {' | '.join([*found, *promised])} |"
        )
    return "\n".join(lines)


def all_tables() -> list[str]:
    """Return every table, in the order of the page."""
    resnets = "resnet_56_constant", "resnet_56_stochastic"
    on_cpu = "resnet_56_constant_cpu", "resnet_56_stochastic_cpu"
    return [
        figure1_committees("figure1"),
        figure1_comparisons("figure1", "figure1_16_epochs"),
        figure1_cascades("figure1"),
        figure1_mixed("figure1"),
        levers(),
        committees("cifar_fast"),
        cascades("cifar_fast"),
        committees("cifar_fast_mirrored"),
        committees("cifar_fast_wide"),
        committees("cifar_fast_wide_mirrored"),
        cascades("cifar_fast_wide"),
        prediction_sets("cifar_fast"),
        accepted_answers("cifar_fast"),
        student("cifar_student", "cifar_fast"),
        cascades("cifar_student"),
        cascade_choice("cifar_fast_5000", "cifar_student_5000", "cifar_fast_1000"),
        committees("cifar10_small"),
        depths(*on_cpu),
        epochs(*resnets, *on_cpu, chosen=(10, 20, 29, 40)),
        gradients(*resnets),
        gradients(*on_cpu),
        implicit_ensemble("resnet_56_stochastic_cpu"),
    ]


def _figure1(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _histories(name: str) -> list[list[dict]]:
    files = sorted((RESULTS / name / "history").glob("*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def _committee_row(title: str, committee: dict) -> str:
    accuracy = committee["accuracy"]
    deviation = f" ± {100 * accuracy['std']:.2f}" if accuracy["subsets"] > 1 else ""
    return (
        f"| {title} | {committee['mflops']:.0f} | {100 * accuracy['mean']:.2f}{deviation} % | "
        f"{committee['nll']['mean']:.3f} | {committee['ece']['mean']:.3f} |"
    )


def _interval(row: dict) -> str:
    low, high = row["interval"]
    return f"{row['points']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


if __name__ == "__main__":
    print(*all_tables(), sep="\n\n")
