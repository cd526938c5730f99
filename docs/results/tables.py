"""The tables of docs/results.md that come from run folders.

    python docs/results/tables.py cifar_fast

A folder beside this file holds `evaluation.json`, the `selection*.json` files and `history/<member>.jsonl` of a run, as
the commands wrote them, without its weights.
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent


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
        accuracy, subsets = committee["accuracy"], committee["accuracy"]["subsets"]
        deviation = f" ± {100 * accuracy['std']:.2f}" if subsets > 1 else ""
        title = "mean member" if committee["size"] == 1 else f"{committee['size']} members"
        lines.append(
            f"| {title}{f' ({subsets} subsets)' if subsets > 1 else ''} | {committee['mflops']:.0f} | "
            f"{100 * accuracy['mean']:.2f}{deviation} % | {committee['nll']['mean']:.3f} | "
            f"{committee['ece']['mean']:.3f} |"
        )
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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(committees(folder), cascades(folder), sep="\n\n")
