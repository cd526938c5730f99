"""What does an ImageNet committee of 3 x EfficientNet-B5 cost on 8, 64 and 512 GPUs? On paper: no GPU is needed.

    python benchmarks/scale.py            # the tables of docs/scale.md, from the inputs below
    python benchmarks/scale.py --quick    # fewer simulated runs
    python benchmarks/scale.py --json
    python benchmarks/scale.py --set images_per_second=400 --set fabric=50e9    # your own inputs

Members side by side ("member-parallel"): each trains on a third of the GPUs. One after another ("data-parallel"): each
trains on all of them. Failures are simulated, and beside them stands the closed form that the mean must agree with.
"""

import argparse
import dataclasses
import json
import math
import platform

import numpy as np

DAY = 86_400.0
RUNS = 1_000  # simulated ones for each row


def _given(value, source: str):
    return dataclasses.field(default=value, metadata={"source": source})


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that the tables are computed from, and where each number comes from."""

    members: int = _given(3, "the committee")
    images: int = _given(1_281_167, "ImageNet 2012, training images")
    epochs: int = _given(350, "the recipe's, those of the authors")
    batch_limit: int = _given(4_096, "the authors' global batch; larger ones were not tuned")
    parameters: int = _given(30_389_784, "`show`, B5")
    multiply_adds: float = _given(10.266e9, "`show`, B5, one image forward")
    reference_multiply_adds: float = _given(4.394e9, "`show`, B4")
    reference_images_per_second: float = _given(
        470.0,
        "published, measured: NVIDIA DeepLearningExamples, EfficientNet v1-B4, TensorFlow, one A100 80 "
        "GB, mixed precision",
    )
    images_per_second: float = _given(
        0.0,
        "0: B4's rate by multiply-adds (assumption: the same share of the peak)",
    )
    least_step: float = _given(
        0.060,
        "assumption: seconds of a step however small its batch; 3 x the 16.3 ms that NVIDIA publishes for "
        "B4, one image forward, by the 39 blocks of B5 against 32",
    )
    scaling: tuple = _given(
        ((1, 1.0), (8, 0.944), (32, 0.858), (64, 0.846)),
        "published, measured: rate per GPU on so many GPUs, same page (7.55 of 8, 27.46 of 32, 54.16 of "
        "64); held beyond 64 (assumption)",
    )
    gpu_memory: float = _given(80e9, "A100 80 GB")
    memory_share: float = _given(0.9, "assumption: what TensorFlow leaves of it")
    bytes_per_image: float = _given(688e6, "`show --set precision=mixed_bfloat16`, B5: activations + passing")
    bytes_fixed: float = _given(0.61e9, "the same: weights, gradients, slots, averages")
    gpus_per_host: int = _given(8, "DGX A100")
    nvlink: float = _given(225e9, "assumption: bytes/s of a ring in a host; 3/4 of NVLink 3's 300 GB/s")
    fabric: float = _given(20e9, "assumption: bytes/s of a ring between hosts; 2 x 100 Gb/s for each host, 4/5 of it")
    hop: float = _given(10e-6, "assumption: seconds for one of the ring's 2 (n - 1) messages")
    cpu_images_per_second: float = _given(
        0.35, "measured: `benchmarks/scale_inputs.py`, B5, float32, one core, no block skipped"
    )
    decodes_per_core: float = _given(56.0, "measured: `benchmarks/scale_inputs.py`, images/s")
    jpeg_bytes: float = _given(110e3, "ImageNet 2012: 138 GB / 1.28 million")
    checkpoint_bytes: float = _given(488e6, "weights, two slots of RMSProp, averages; float32")
    checkpoint_seconds: float = _given(4.0, "measured: `benchmarks/scale_inputs.py`, of so many bytes; training waits")
    restart: float = _given(400.0, "assumption: 90 s until a lost host is noticed, 310 s to start and trace")
    mtbf_hours: float = _given(
        50_676.0,
        "published: 419 unexpected interruptions in 54 days of 16,384 H100 (Llama 3, arXiv:2407.21783)",
    )
    preempted_hours: float = _given(192.0, "assumption: a preemptible host of 8 GPUs is lost once a day")
    save_every: float = _given(300.0, "`train --save-every`, its default")

    @property
    def rate(self) -> float:
        """Images a second of one GPU, training alone, with batches that fill it."""
        by_work = self.reference_images_per_second * self.reference_multiply_adds / self.multiply_adds
        return self.images_per_second or by_work


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to train the committee on so many GPUs.

    Attributes:
        gpus: There are so many.
        side_by_side: How many members train at once.
        each: GPUs of one member.
        batch: Images of one GPU and step.
        step, network: Seconds of a step, and of these of the all-reduce.
    """

    gpus: int
    side_by_side: int
    each: int
    batch: int
    step: float
    network: float

    @property
    def name(self) -> str:
        return "side by side" if self.side_by_side > 1 else "one after another"


def plan(inputs: Inputs, gpus: int, side_by_side: int) -> Plan:
    each = gpus // side_by_side
    fits = int((inputs.gpu_memory * inputs.memory_share - inputs.bytes_fixed) / inputs.bytes_per_image)
    batch = min(fits, inputs.batch_limit // each)
    compute = max(batch / inputs.rate, inputs.least_step) / scaling(inputs, each)
    network = ring_seconds(inputs, each)
    return Plan(gpus, side_by_side, each, batch, compute + network, network)


def scaling(inputs: Inputs, gpus: int) -> float:
    """What is left of a GPU's rate where so many work together: straight lines in the logarithm of their number."""
    counts, shares = zip(*inputs.scaling, strict=True)
    return float(np.interp(math.log2(gpus), np.log2(counts), shares))


def ring_bytes(inputs: Inputs, gpus: int) -> float:
    """Bytes that each GPU sends in a step: a ring all-reduce of float32 gradients, 2 (n - 1) / n of them."""
    return 2 * (gpus - 1) / gpus * 4 * inputs.parameters


def ring_seconds(inputs: Inputs, gpus: int) -> float:
    """Not hidden behind the backward pass."""
    bandwidth = inputs.nvlink if gpus <= inputs.gpus_per_host else inputs.fabric
    return ring_bytes(inputs, gpus) / bandwidth + 2 * (gpus - 1) * inputs.hop


def member_seconds(inputs: Inputs, made: Plan) -> float:
    """Of one member's training, if nothing fails and nothing is saved."""
    return inputs.epochs * math.ceil(inputs.images / (made.batch * made.each)) * made.step


def expected_seconds(work: float, interval: float, inputs: Inputs, mtbf: float) -> float:
    """Wall time of `work` seconds with a checkpoint each `interval`: the mean, exactly, of exponential failures.

    Source: Daly 2006, doi:10.1016/j.future.2004.11.016, equation 13, with a last part that may be shorter.
    """
    parts = [interval] * int(work / interval)
    parts += [work - sum(parts)] if work > sum(parts) else []
    grown = sum(math.expm1((part + inputs.checkpoint_seconds) / mtbf) for part in parts)
    return mtbf * math.exp(inputs.restart / mtbf) * grown


def best_interval(inputs: Inputs, mtbf: float) -> float:
    """Young 1974: the square root of twice the cost of a checkpoint times the mean time between failures."""
    return math.sqrt(2 * inputs.checkpoint_seconds * mtbf)


def simulated_seconds(work: float, interval: float, inputs: Inputs, mtbf: float, draw) -> float:
    """Wall time of one run with failures at random: each loses what was done since the last checkpoint."""
    done, now, waiting = 0.0, 0.0, 0.0
    while True:
        failure = draw.exponential(mtbf)
        whole = int(max(0.0, failure - waiting) / (interval + inputs.checkpoint_seconds))
        left = work - done
        checkpoints = math.ceil(left / interval - 1e-9)
        needs = waiting + left + checkpoints * inputs.checkpoint_seconds
        if failure >= needs:
            return now + needs
        done, now = done + min(whole, checkpoints - 1) * interval, now + failure
        waiting = inputs.restart  # before it goes on; it may fail in this time, too


def committee_seconds(inputs: Inputs, made: Plan, interval: float, mtbf: float, runs: int, seed: int):
    """Simulated wall times: of one member `(runs, members)`, and of the committee `(runs,)`."""
    draw, work = np.random.default_rng(seed), member_seconds(inputs, made)
    each = np.array(
        [[simulated_seconds(work, interval, inputs, mtbf, draw) for _ in range(inputs.members)] for _ in range(runs)]
    )
    return each, each.max(axis=1) if made.side_by_side > 1 else each.sum(axis=1)


def plans(inputs: Inputs, sizes=(8, 64, 512)) -> list[Plan]:
    return [plan(inputs, gpus, together) for gpus in sizes for together in (inputs.members, 1)]


def cost_table(inputs: Inputs) -> list[list]:
    alone = inputs.members * inputs.epochs * inputs.images / inputs.cpu_images_per_second
    rows = [["one CPU core", "one after another", "-", 2, 2, f"{2e3 / inputs.cpu_images_per_second:,.0f}",
             f"{inputs.cpu_images_per_second:.2f}", f"{alone / DAY:,.0f}", "-"]]  # fmt: skip
    for made in plans(inputs):
        rounds = inputs.members / made.side_by_side
        wall = member_seconds(inputs, made) * rounds
        rate = made.batch * made.each * made.side_by_side / made.step
        rows.append([
            made.gpus, made.name, f"{made.side_by_side} x {made.each}", made.batch, f"{made.batch * made.each:,}",
            f"{made.step * 1e3:.0f}", f"{rate:,.0f}", f"{wall / DAY:.2f}", f"{wall / 3600 * made.gpus:,.0f}",
        ])  # fmt: skip
    return rows


def input_table(inputs: Inputs) -> list[list]:
    rows = []
    for made in plans(inputs):
        rate = made.batch / made.step
        host = rate * min(inputs.gpus_per_host, made.each * made.side_by_side)
        rows.append([
            made.gpus, made.name, f"{rate:.0f}", f"{host:,.0f}", f"{host * inputs.jpeg_bytes / 1e6:.0f}",
            f"{rate / inputs.decodes_per_core:.1f}", f"{host / inputs.decodes_per_core:.0f}",
        ])  # fmt: skip
    return rows


def network_table(inputs: Inputs) -> list[list]:
    return [
        [
            made.gpus, made.name, made.each, f"{ring_bytes(inputs, made.each) / 1e6:.0f}", f"{made.network * 1e3:.1f}",
            f"{made.network / made.step:.1%}", f"{ring_bytes(inputs, made.each) / made.step / 1e9:.2f}",
        ]
        for made in plans(inputs)
    ]  # fmt: skip


def failure_rows(inputs: Inputs, runs: int) -> list[dict]:
    """Of each plan, for GPUs that fail and for hosts that are taken away: closed form and simulation."""
    rows = []
    for number, (hours, made) in enumerate(
        (hours, made) for hours in (inputs.mtbf_hours, inputs.preempted_hours) for made in plans(inputs)
    ):
        mtbf, work = hours * 3600 / made.each, member_seconds(inputs, made)
        best = best_interval(inputs, mtbf)
        each, whole = committee_seconds(inputs, made, inputs.save_every, mtbf, runs, seed=number)
        rows.append({
            "hours": hours, "plan": made, "mtbf": mtbf, "failures": work / mtbf * inputs.members, "best": best,
            "loss_at_best": expected_seconds(work, best, inputs, mtbf) / work - 1,
            "loss": expected_seconds(work, inputs.save_every, inputs, mtbf) / work - 1,
            "simulated": float(each.mean()) / work - 1,
            "error": float(each.std() / math.sqrt(each.size)) / work,
            "days": float(whole.mean()) / DAY,
        })  # fmt: skip
    return rows


def failure_table(rows: list[dict]) -> list[list]:
    return [
        [
            f"{row['hours']:,.0f} h", row["plan"].gpus, row["plan"].name, _time(row["mtbf"]), f"{row['failures']:.2f}",
            _time(row["best"]), f"{row['loss_at_best']:.2%}", f"{row['loss']:.2%}", f"{row['simulated']:.2%}",
            f"{row['days']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip


def _time(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def markdown(columns: list[str], rows: list[list], words=("members", "source")) -> str:
    borders = ["---" if column in words else "---:" for column in columns[1:]]
    lines = [columns, ["---", *borders], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def tables(inputs: Inputs, failures: list[dict]) -> dict[str, str]:
    """Title -> table, as in docs/scale.md."""
    given = [[f.name, _shown(getattr(inputs, f.name)), f.metadata["source"]] for f in dataclasses.fields(inputs)]
    how = ["GPUs", "members"]
    return {
        "Inputs": markdown(["input", "value", "source"], given),
        "Cost": markdown(
            [*how, "GPUs at work", "batch of a GPU", "global batch", "ms a step", "images/s", "days", "GPU-hours"],
            cost_table(inputs),
        ),
        "Input": markdown(
            [*how, "images/s of a GPU", "of a host", "MB/s of a host", "cores for a GPU", "for a host"],
            input_table(inputs),
        ),
        "Network": markdown(
            [*how, "GPUs in a ring", "MB sent by a GPU", "ms", "of the step", "GB/s of a GPU, mean"],
            network_table(inputs),
        ),
        "Failures": markdown(
            ["a GPU fails each", *how, "a member fails each", "failures", "best interval", "lost at it",
             f"lost at {inputs.save_every:.0f} s", "simulated", "days, simulated"],
            failure_table(failures),
        ),
    }  # fmt: skip


def _shown(value) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{count}: {share}" for count, share in value)
    return (
        f"{value:,.6g}" if value and abs(value) < 1e6 else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
    )


def run(inputs: Inputs, runs: int) -> dict:
    failures = failure_rows(inputs, runs)
    first = plans(inputs)[0]
    days = {made: member_seconds(inputs, made) * inputs.members / made.side_by_side / DAY for made in plans(inputs)}
    return {
        "machine": f"on paper; Python {platform.python_version()}, {runs} simulated runs a row",
        "inputs": dataclasses.asdict(inputs),
        "rows": [
            {"name": f"{made.gpus} GPUs, {made.name}", "median": days[made], "ratio": days[made] / days[first]}
            for made in plans(inputs)
        ],
        "failures": [{**row, "plan": dataclasses.asdict(row["plan"])} for row in failures],
        "tables": tables(inputs, failures),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer simulated runs")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document; median: days")
    parser.add_argument("--set", action="append", default=[], metavar="INPUT=NUMBER", help="another input")
    arguments = parser.parse_args()
    given = {name: float(value) for name, value in (text.split("=") for text in arguments.set)}
    inputs = Inputs(**{name: type(getattr(Inputs, name))(value) for name, value in given.items()})
    result = run(inputs, runs=100 if arguments.quick else RUNS)
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n\n".join(f"## {title}\n\n{table}" for title, table in result["tables"].items()))
