"""Runs in Weights & Biases: one run for the committee, in which each member is a section of charts."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

if TYPE_CHECKING:
    from keras_committee.tracking.sender import Row, TrackedRun


class WandbTracker:
    """A committee in Weights & Biases, as `sender.Tracker`.

    Its history is one sequence of steps, which is never written twice. So each row gets the next step for good before
    it is sent; after a kill, those that the server has are skipped.
    """

    def __init__(self, address: str, tracked: "TrackedRun", state: dict[str, Any], save: Callable[[], None]):
        entity, _, project = address.rpartition("/")
        state.setdefault("rows", [])  # of each step, its prefix and epoch
        state.setdefault("sent_rows", 0)
        self._tracked, self._state, self._save = tracked, state, save
        self._run = wandb.init(
            entity=entity or None,
            project=project or os.environ.get("WANDB_PROJECT") or re.sub(r"[/\\#?%:]", "-", tracked.group),
            id=tracked.key,
            resume="allow",
            name=tracked.title,
            config=tracked.parameters,
            dir=os.environ.get("WANDB_DIR") or tracked.folder,
            settings=wandb.Settings(console="off", silent=True, disable_code=True, x_disable_stats=True),
        )
        state["run_id"] = self._run.id
        state["sent_rows"] = max(state["sent_rows"], self._run.step)  # 0 without a connection
        offline = f"offline; to upload it: wandb sync --append {Path(self._run.dir).parents[1]}/offline-run-*"
        self.url = offline if self._run.offline else self._run.url or ""
        self._prefixes: set[str] = set()

    def send_parameters(self) -> None:
        self._run.config.update(self._tracked.parameters, allow_val_change=True)
        self._run.config.update({"environment": self._tracked.tags}, allow_val_change=True)

    def send_rows(self, member: int | None, prefix: str, rows: "list[Row]") -> None:
        prefix = prefix if member is None else f"member_{member}/"
        if prefix not in self._prefixes:
            self._prefixes.add(prefix)
            self._run.define_metric(f"{prefix}epoch", hidden=True)
            self._run.define_metric(f"{prefix}*", step_metric=f"{prefix}epoch")
        known = [tuple(row) for row in self._state["rows"]]
        new = [(prefix, row.epoch) for row in rows if (prefix, row.epoch) not in known]
        self._state["rows"] += map(list, new)
        self._save()
        steps = {key: step for step, key in enumerate([*known, *new])}
        for row in rows:
            if (step := steps[prefix, row.epoch]) < self._state["sent_rows"]:
                continue
            values = {f"{prefix}{name}": value for name, value in row.scores.items()}
            self._run.log({f"{prefix}epoch": row.epoch, "_timestamp": row.time / 1000, **values}, step=step)
            self._state["sent_rows"] = step + 1

    def send_scores(self, member: int | None, scores: Mapping[str, float]) -> None:
        prefix = "" if member is None else f"member_{member}/"
        self._run.summary.update({f"{prefix}{name}": value for name, value in scores.items()})

    def send_files(self, files: Mapping[str, Path]) -> None:
        artifact = wandb.Artifact(_artifact_name(f"{self._tracked.title}-files"), type="run-files")
        for name, path in files.items():
            artifact.add_file(str(path), name)
        self._run.log_artifact(artifact)

    def send_export(self, version: Path, manifest: Mapping[str, Any]) -> None:
        facts = {name: manifest[name] for name in ("kind", "labels", "image", "head", "created")}
        artifact = wandb.Artifact(
            _artifact_name(version.parent.name), type="model", metadata={**facts, "version": str(version)}
        )
        artifact.add_dir(str(version))
        self._run.log_artifact(artifact)

    def send_member_end(self, member: int, status: str) -> None:
        self._run.summary.update({f"member_{member}/status": status.lower()})

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


def _artifact_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)
