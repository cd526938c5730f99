"""Which members are still to be trained, with what, and what became of each?"""

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from keras_committee.data import Splits, validation
from keras_committee.errors import CommitteeError, DivergedError, IncompleteError, RecipeError
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.training.devices import choose_num_workers, enable_determinism, make_strategy, translate_oom
from keras_committee.training.lease import release
from keras_committee.training.multihost import SingleHost, make_host_group
from keras_committee.training.reporting import Monitor, TrainingOptions
from keras_committee.training.signals import GracefulShutdown, TrainingStopped
from keras_committee.training.supervisor import Supervisor
from keras_committee.training.trainer import train_member

if TYPE_CHECKING:
    from keras_committee.training.ray_cluster import RayCluster
import re
from typing import TYPE_CHECKING, Any


def train_committee(
    run: Run,
    recipe: Recipe,
    strategy: str = "auto",
    *,
    workers: int | Literal["auto"] = 1,
    members: Sequence[int] | None = None,
    options: TrainingOptions | None = None,
    restart: bool = False,
    ray_cluster: "RayCluster | None" = None,
) -> None:
    """Train every member of `recipe` that is not finished in `run`; an unfinished one goes on where it was.

    A finished member is never trained again. A member that diverges, or whose process dies, does not stop the others.
    The caller holds the lock of the run folder.

    Args:
        run: The run folder; it gets models, histories, TensorBoard logs and a journal.
        recipe: What to train. Workers build it anew from the recipe in the run folder.
        strategy: `"auto"`, `"single"`, `"mirrored"` or `"multiworker"`, see `strategy.make_strategy`.
            With the last one this host is the chief, and the others call `follower.run_as_worker`.
        workers: How many members train at once, each in a process of its own with its share of the cores or GPUs. 1
            trains in this process; `"auto"` is the number that `machine.choose` gives.
        members: The indices of those to train; None is all. Others may train others in the same run folder.
        options: How members are run and kept safe.
        restart: Discard the state of unfinished members first.
        ray_cluster: The Ray cluster to train on, joined; None trains on this machine.

    Raises:
        DataError: If the pre-flight of the data finds anything; nothing was trained then.
        RecipeError: If the strategy, the batch size or a model does not fit, or there is no validation split.
        DivergedError: If every member that was to be trained diverged.
        IncompleteError: If some members failed; the others are finished.
        Interrupted: If training was asked to stop; what was reached is saved.
    """
    options = options or TrainingOptions()
    missing = _missing_members(run, recipe, members, restart)
    if not missing:
        return
    if options.deterministic:
        enable_determinism()
    with make_host_group(strategy, run, options) as host_group:
        _train_missing(
            run, recipe, missing, strategy, 1 if host_group.is_multi_host else workers, options, host_group, ray_cluster
        )


def _train_missing(run, recipe, missing, strategy, workers, options, host_group: SingleHost, ray_cluster) -> None:
    num_workers, reason = (
        (len(missing), "") if ray_cluster and workers == "auto" else choose_num_workers(workers, len(missing))
    )
    tf_strategy = make_strategy(strategy, recipe.data.batch_size) if num_workers == 1 and not ray_cluster else None
    host_group.on_strategy_created(tf_strategy)
    splits = _load_data(recipe)
    run.require_classes(splits.classes)
    finished = run.finished_members()
    data_info = {"classes": list(splits.classes), "framing": dataclasses.asdict(splits.train.transform)}
    run.append_event("training_started", members=missing, kept=finished, workers=num_workers, **data_info)
    progress_monitor = Monitor(run, recipe, splits, missing)
    with (
        GracefulShutdown() as shutdown,
        _translate_stop(run, recipe, shutdown),
        shutdown.mask_signals(enabled=host_group.is_multi_host),
        progress_monitor as monitor,
    ):
        if reason:
            monitor.note(reason)
        if ray_cluster:
            failures = ray_cluster.train(run, missing, num_workers, strategy, monitor, shutdown, options)
        elif tf_strategy is None:
            failures = Supervisor(run, missing, num_workers, strategy, monitor, shutdown, options).train()
        else:
            failures = _train_in_process(
                run, recipe, missing, splits, tf_strategy, monitor, shutdown, options, host_group
            )
    _notify_end(run, recipe, failures)
    run.append_event("training_finished")


def _missing_members(run: Run, recipe: Recipe, members: Sequence[int] | None, restart: bool) -> list[int]:
    requested = range(recipe.members) if members is None else sorted(set(members))
    unknown = [index for index in requested if not 0 <= index < recipe.members]
    if unknown:
        reason = "--smoke trains no more" if run.smoke else "its `members` says how many"
        raise RecipeError(
            f"there is no member {unknown[0]}: the recipe has members 0 to {recipe.members - 1}; {reason}."
        )
    finished = run.finished_members()
    missing = [index for index in requested if index not in finished]
    # What a kill between a finished model and its clean-up left, and what is to be discarded.
    for index in [*(set(finished) & set(requested)), *(missing if restart else [])]:
        with run.member(index).lock():
            shutil.rmtree(run.member(index).state, ignore_errors=True)
    for index in missing:
        release(run.member(index))  # a node that was lost in an earlier training saves nothing more
    return missing


def _load_data(recipe: Recipe) -> Splits:
    splits = recipe.data.load()
    if not len(splits.validation):
        raise RecipeError(f"{recipe.data.name} has no validation split. Give its `validation` a count or a fraction.")
    if duplicates_text := validation.duplicates_warning(splits):
        logging.getLogger(__name__).warning("%s: %s", recipe.data.name, duplicates_text)
    return splits


@contextlib.contextmanager
def _translate_stop(run: Run, recipe: Recipe, shutdown: GracefulShutdown) -> Iterator[None]:
    """Turns `TrainingStopped` into what the user reads."""
    try:
        yield
    except TrainingStopped:
        progress = f"{len(run.finished_members())} of {recipe.members} members are finished, the others saved"
        run.append_event("training_stopped", signal=shutdown.requested.name if shutdown.requested else None)
        raise shutdown.as_error(progress, "The same command goes on from there.") from None


def _train_in_process(
    run, recipe, missing, splits, tf_strategy, monitor, shutdown, options, host_group
) -> dict[int, CommitteeError]:
    """Trains one member after another in this process, and returns the errors of those that diverged."""
    failures = {}
    for index in missing:
        host_group.begin_member(index, shutdown)
        monitor.on_member_begin(index)
        run.append_event(
            "member_started", member=index, seed=recipe.seed + index, devices=tf_strategy.num_replicas_in_sync
        )
        started = time.monotonic()
        try:
            with run.member(index).lock(), translate_oom(index):
                train_member(
                    recipe, index, splits, run.member(index), tf_strategy, monitor, shutdown, options, host_group
                )
        except DivergedError as error:
            failures[index] = error
            monitor.event(index, "member_failed", f"error: {error}", error=str(error))
        except BaseException as error:
            run.append_event("member_failed", member=index, error=f"{type(error).__name__}: {error}")
            raise
        else:
            run.append_event("member_finished", member=index, seconds=round(time.monotonic() - started, 1))
        monitor.on_member_end(index)
    return failures


def _notify_end(run: Run, recipe: Recipe, failures: dict[int, CommitteeError]) -> None:
    if not failures:
        return
    run.append_event("training_failed", members=sorted(failures))
    finished = len(run.finished_members())
    if finished == 0 and all(isinstance(error, DivergedError) for error in failures.values()):
        raise DivergedError("\n".join(str(error) for error in failures.values()))
    listing = "\n  ".join(f"member {index}: {str(error).splitlines()[0]}" for index, error in sorted(failures.items()))
    raise IncompleteError(
        f"{finished} of {recipe.members} members in {run.path} are finished; failed:\n  {listing}\n"
        "The same command tries the failed ones again, from their last checkpoints."
    )


@contextlib.contextmanager
def connect(address: str | None, resources_per_member: str | None = None) -> "Iterator[RayCluster | None]":
    """The Ray cluster at `address`, joined inside the `with` block, or None where there is no address.

    Args:
        address: As in `ray.Cluster`, or None.
        resources_per_member: What each member asks for: `"cpus=2"`, `"gpus=0.5"` or `"cpus=2,gpus=1"`.

    Raises:
        RecipeError: If Ray is not installed, or an argument is wrong.
        ResourceError: If no cluster answers.
    """
    resources = _parse_resources(resources_per_member)
    if address is None:
        if resources:
            raise RecipeError(
                f"--resources-per-member {resources_per_member} is what members ask of --ray-address. Add --ray-address ADDRESS."
            )
        yield None
        return
    try:
        from keras_committee.training.ray_cluster import RayCluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise RecipeError("--ray-address needs the package ray: pip install keras-committee[ray]") from error
    with RayCluster(address, **resources) as cluster:
        yield cluster


def _parse_resources(text: str | None) -> dict[str, Any]:
    """`"cpus=2,gpus=0.5"` as `{"cpus": 2, "gpus": 0.5}`."""
    if text is None:
        return {}
    cpus, gpus = r"cpus=[1-9]\d*", r"gpus=(\d+|0?\.\d+)"  # Ray gives whole GPUs, or a part of one
    if not re.fullmatch(f"{cpus}|{gpus}|{cpus},{gpus}", text):
        raise RecipeError(f"--resources-per-member expected cpus=N, gpus=N or cpus=N,gpus=N. Received: '{text}'")
    items = dict(word.split("=") for word in text.split(","))
    return {name: int(number) if name == "cpus" else float(number) for name, number in items.items()}
