"""Estimated cost of an ImageNet committee of 3 x EfficientNet-B5 on 8, 64 and 512 GPUs. No GPU is needed.

    python benchmarks/scale.py            # the tables of docs/scale.md, from the inputs below
    python benchmarks/scale.py --quick    # fewer simulated runs
    python benchmarks/scale.py --json
    python benchmarks/scale.py --set images_per_second=400 --set fabric=50e9    # your own inputs

Members "in parallel" train on a third of the GPUs each; members "in sequence" train on all of them in turn. Failures
are simulated and compared with the closed form of their mean.
"""

import argparse
import dataclasses
import json
import math
import platform

import numpy as np

DAY = 86_400.0
RUNS = 1_000  # simulated runs per row


def _input(value, source: str):
    return dataclasses.field(default=value, metadata={"source": source})


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of all tables, each with its source."""

    members: int = _input(3, "the committee")
    images: int = _input(1_281_167, "ImageNet 2012, training images")
    epochs: int = _input(350, "the recipe, as in the paper")
    batch_limit: int = _input(4_096, "the authors' global batch size; larger ones were not tuned")
    parameters: int = _input(30_389_784, "`describe`, B5")
    multiply_adds: float = _input(10.266e9, "`describe`, B5, forward pass of one image")
    reference_multiply_adds: float = _input(4.394e9, "`describe`, B4")
    reference_images_per_second: float = _input(
        470.0,
        "published, measured: NVIDIA DeepLearningExamples, EfficientNet v1-B4, TensorFlow, one A100 80 "
        "GB, mixed precision",
    )
    images_per_second: float = _input(
        0.0,
        "0: B4's rate scaled by multiply-adds (assumption: the same fraction of the peak)",
    )
    min_step: float = _input(
        0.060,
        "assumption: shortest step in seconds; 3 x the 16.3 ms that NVIDIA publishes for a forward pass of one "
        "image of B4, scaled by the 39 blocks of B5 against 32",
    )
    scaling: tuple = _input(
        ((1, 1.0), (8, 0.944), (32, 0.858), (64, 0.846)),
        "published, measured: relative rate per GPU by number of GPUs, same page (7.55 of 8, 27.46 of 32, "
        "54.16 of 64); constant beyond 64 (assumption)",
    )
    gpu_memory: float = _input(80e9, "A100 80 GB")
    memory_fraction: float = _input(0.9, "assumption: available to TensorFlow")
    bytes_per_image: float = _input(688e6, "`describe --set precision=mixed_bfloat16`, B5: activations + passing")
    bytes_fixed: float = _input(0.61e9, "the same: weights, gradients, slots, averages")
    gpus_per_host: int = _input(8, "DGX A100")
    nvlink: float = _input(225e9, "assumption: bytes/s of a ring within a host; 3/4 of NVLink 3's 300 GB/s")
    fabric: float = _input(20e9, "assumption: bytes/s of a ring between hosts; 4/5 of 2 x 100 Gb/s per host")
    hop: float = _input(10e-6, "assumption: seconds per message of a ring, of 2 (n - 1)")
    cpu_images_per_second: float = _input(
        0.375, "measured: `benchmarks/scale_inputs.py`, B5, float32, one core, no block skipped"
    )
    decodes_per_core: float = _input(58.0, "measured: `benchmarks/scale_inputs.py`, images/s")
    jpeg_bytes: float = _input(110e3, "ImageNet 2012: 138 GB / 1.28 million")
    checkpoint_bytes: float = _input(488e6, "weights, two slots of RMSProp, averages; float32")
    checkpoint_seconds: float = _input(
        7.0, "measured: `benchmarks/scale_inputs.py`, for these bytes on a busy machine; training waits"
    )
    restart: float = _input(400.0, "assumption: 90 s to detect a lost host, 310 s to start and trace")
    mtbf_hours: float = _input(
        50_676.0,
        "published: 419 unexpected interruptions in 54 days of 16,384 H100 (Llama 3, arXiv:2407.21783)",
    )
    preempted_hours: float = _input(192.0, "assumption: a preemptible host of 8 GPUs is lost once a day")
    checkpoint_every: float = _input(300.0, "default of `train --checkpoint-every`")

    @property
    def rate(self) -> float:
        """Images per second of a single GPU with batches that use it fully."""
        scaled = self.reference_images_per_second * self.reference_multiply_adds / self.multiply_adds
        return self.images_per_second or scaled


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to train the committee.

    Attributes:
        gpus: Number of GPUs.
        concurrent_members: Members that train at the same time.
        gpus_per_member: GPUs of one member.
        batch: Images per GPU and step.
        step, network: Seconds per step, and of the all-reduce within it.
    """

    gpus: int
    concurrent_members: int
    gpus_per_member: int
    batch: int
    step: float
    network: float

    @property
    def name(self) -> str:
        return "in parallel" if self.concurrent_members > 1 else "in sequence"


def make_plan(inputs: Inputs, gpus: int, concurrent_members: int) -> Plan:
    gpus_per_member = gpus // concurrent_members
    fits = int((inputs.gpu_memory * inputs.memory_fraction - inputs.bytes_fixed) / inputs.bytes_per_image)
    batch = min(fits, inputs.batch_limit // gpus_per_member)
    compute = max(batch / inputs.rate, inputs.min_step) / scaling(inputs, gpus_per_member)
    network = ring_seconds(inputs, gpus_per_member)
    return Plan(gpus, concurrent_members, gpus_per_member, batch, compute + network, network)


def scaling(inputs: Inputs, gpus: int) -> float:
    """Relative rate per GPU, interpolated linearly in the logarithm of the number of GPUs."""
    counts, rates = zip(*inputs.scaling, strict=True)
    return float(np.interp(math.log2(gpus), np.log2(counts), rates))


def ring_bytes(inputs: Inputs, gpus: int) -> float:
    """Bytes that each GPU sends per step: a ring all-reduce of float32 gradients, 2 (n - 1) / n of them."""
    return 2 * (gpus - 1) / gpus * 4 * inputs.parameters


def ring_seconds(inputs: Inputs, gpus: int) -> float:
    """Seconds of the all-reduce, not overlapped with the backward pass."""
    bandwidth = inputs.nvlink if gpus <= inputs.gpus_per_host else inputs.fabric
    return ring_bytes(inputs, gpus) / bandwidth + 2 * (gpus - 1) * inputs.hop


def member_seconds(inputs: Inputs, plan: Plan) -> float:
    """Training time of one member without failures and checkpoints."""
    return inputs.epochs * math.ceil(inputs.images / (plan.batch * plan.gpus_per_member)) * plan.step


def expected_seconds(work: float, interval: float, inputs: Inputs, mtbf: float) -> float:
    """Exact mean wall time of `work` seconds with a checkpoint every `interval` under exponential failures.

    Source: Daly 2006, doi:10.1016/j.future.2004.11.016, equation 13, with a possibly shorter last part.
    """
    parts = [interval] * int(work / interval)
    parts += [work - sum(parts)] if work > sum(parts) else []
    grown = sum(math.expm1((part + inputs.checkpoint_seconds) / mtbf) for part in parts)
    return mtbf * math.exp(inputs.restart / mtbf) * grown


def best_interval(inputs: Inputs, mtbf: float) -> float:
    """Young 1974: square root of twice the cost of a checkpoint times the mean time between failures."""
    return math.sqrt(2 * inputs.checkpoint_seconds * mtbf)


def simulated_seconds(work: float, interval: float, inputs: Inputs, mtbf: float, rng) -> float:
    """Wall time of one run with random failures; each loses the work since the last checkpoint."""
    done, now, waiting = 0.0, 0.0, 0.0
    while True:
        failure = rng.exponential(mtbf)
        completed = int(max(0.0, failure - waiting) / (interval + inputs.checkpoint_seconds))
        left = work - done
        checkpoints = math.ceil(left / interval - 1e-9)
        required = waiting + left + checkpoints * inputs.checkpoint_seconds
        if failure >= required:
            return now + required
        done, now = done + min(completed, checkpoints - 1) * interval, now + failure
        waiting = inputs.restart  # may fail again before it resumes


def committee_seconds(inputs: Inputs, plan: Plan, interval: float, mtbf: float, runs: int, seed: int):
    """Simulated wall times of each member `(runs, members)` and of the committee `(runs,)`."""
    rng, work = np.random.default_rng(seed), member_seconds(inputs, plan)
    members = np.array(
        [[simulated_seconds(work, interval, inputs, mtbf, rng) for _ in range(inputs.members)] for _ in range(runs)]
    )
    return members, members.max(axis=1) if plan.concurrent_members > 1 else members.sum(axis=1)


def plans(inputs: Inputs, sizes=(8, 64, 512)) -> list[Plan]:
    return [make_plan(inputs, gpus, concurrent) for gpus in sizes for concurrent in (inputs.members, 1)]


def cost_table(inputs: Inputs) -> list[list]:
    alone = inputs.members * inputs.epochs * inputs.images / inputs.cpu_images_per_second
    rows = [["one CPU core", "in sequence", "-", 2, 2, f"{2e3 / inputs.cpu_images_per_second:,.0f}",
             f"{inputs.cpu_images_per_second:.2f}", f"{alone / DAY:,.0f}", "-"]]  # fmt: skip
    for plan in plans(inputs):
        rounds = inputs.members / plan.concurrent_members
        wall = member_seconds(inputs, plan) * rounds
        rate = plan.batch * plan.gpus_per_member * plan.concurrent_members / plan.step
        rows.append([
            plan.gpus, plan.name, f"{plan.concurrent_members} x {plan.gpus_per_member}", plan.batch,
            f"{plan.batch * plan.gpus_per_member:,}", f"{plan.step * 1e3:.0f}", f"{rate:,.0f}", f"{wall / DAY:.2f}",
            f"{wall / 3600 * plan.gpus:,.0f}",
        ])  # fmt: skip
    return rows


def input_table(inputs: Inputs) -> list[list]:
    rows = []
    for plan in plans(inputs):
        rate = plan.batch / plan.step
        host = rate * min(inputs.gpus_per_host, plan.gpus_per_member * plan.concurrent_members)
        rows.append([
            plan.gpus, plan.name, f"{rate:.0f}", f"{host:,.0f}", f"{host * inputs.jpeg_bytes / 1e6:.0f}",
            f"{rate / inputs.decodes_per_core:.1f}", f"{host / inputs.decodes_per_core:.0f}",
        ])  # fmt: skip
    return rows


def network_table(inputs: Inputs) -> list[list]:
    return [
        [
            plan.gpus, plan.name, plan.gpus_per_member, f"{ring_bytes(inputs, plan.gpus_per_member) / 1e6:.0f}",
            f"{plan.network * 1e3:.1f}",
            f"{plan.network / plan.step:.1%}", f"{ring_bytes(inputs, plan.gpus_per_member) / plan.step / 1e9:.2f}",
        ]
        for plan in plans(inputs)
    ]  # fmt: skip


def failure_rows(inputs: Inputs, runs: int) -> list[dict]:
    """Closed form and simulation for each plan, with failing GPUs and with preempted hosts."""
    rows = []
    for number, (hours, plan) in enumerate(
        (hours, plan) for hours in (inputs.mtbf_hours, inputs.preempted_hours) for plan in plans(inputs)
    ):
        mtbf, work = hours * 3600 / plan.gpus_per_member, member_seconds(inputs, plan)
        best = best_interval(inputs, mtbf)
        members, committee = committee_seconds(inputs, plan, inputs.checkpoint_every, mtbf, runs, seed=number)
        rows.append({
            "hours": hours, "plan": plan, "mtbf": mtbf, "failures": work / mtbf * inputs.members, "best": best,
            "loss_at_best": expected_seconds(work, best, inputs, mtbf) / work - 1,
            "loss": expected_seconds(work, inputs.checkpoint_every, inputs, mtbf) / work - 1,
            "simulated": float(members.mean()) / work - 1,
            "error": float(members.std() / math.sqrt(members.size)) / work,
            "days": float(committee.mean()) / DAY,
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
    """The tables of docs/scale.md, by title."""
    input_rows = [
        [f.name, _format_value(getattr(inputs, f.name)), f.metadata["source"]] for f in dataclasses.fields(inputs)
    ]
    plan_columns = ["GPUs", "members"]
    return {
        "Inputs": markdown(["input", "value", "source"], input_rows),
        "Cost": markdown(
            [*plan_columns, "GPUs used", "batch per GPU", "global batch", "ms per step", "images/s", "days",
             "GPU-hours"],
            cost_table(inputs),
        ),
        "Input": markdown(
            [*plan_columns, "images/s per GPU", "per host", "MB/s per host", "cores per GPU", "per host"],
            input_table(inputs),
        ),
        "Network": markdown(
            [*plan_columns, "GPUs per ring", "MB sent per GPU", "ms", "fraction of step", "mean GB/s per GPU"],
            network_table(inputs),
        ),
        "Failures": markdown(
            ["MTBF of a GPU", *plan_columns, "MTBF of a member", "failures", "best interval", "loss at it",
             f"loss at {inputs.checkpoint_every:.0f} s", "simulated", "days, simulated"],
            failure_table(failures),
        ),
    }  # fmt: skip


def _format_value(value) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{count}: {rate}" for count, rate in value)
    return (
        f"{value:,.6g}" if value and abs(value) < 1e6 else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
    )


def run(inputs: Inputs, runs: int) -> dict:
    failures = failure_rows(inputs, runs)
    first = plans(inputs)[0]
    days = {
        plan: member_seconds(inputs, plan) * inputs.members / plan.concurrent_members / DAY for plan in plans(inputs)
    }
    return {
        "machine": f"estimate; Python {platform.python_version()}, {runs} simulated runs per row",
        "inputs": dataclasses.asdict(inputs),
        "rows": [
            {"name": f"{plan.gpus} GPUs, {plan.name}", "median": days[plan], "ratio": days[plan] / days[first]}
            for plan in plans(inputs)
        ],
        "failures": [{**row, "plan": dataclasses.asdict(row["plan"])} for row in failures],
        "tables": tables(inputs, failures),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer simulated runs")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document; median: days")
    parser.add_argument("--set", action="append", default=[], metavar="INPUT=NUMBER", help="override an input")
    arguments = parser.parse_args()
    given = {name: float(value) for name, value in (text.split("=") for text in arguments.set)}
    inputs = Inputs(**{name: type(getattr(Inputs, name))(value) for name, value in given.items()})
    result = run(inputs, runs=100 if arguments.quick else RUNS)
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n\n".join(f"## {title}\n\n{table}" for title, table in result["tables"].items()))
