"""Training of a committee: every member that is not finished, on this machine, on several hosts or on a Ray cluster."""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import tensorflow as tf

from keras_committee.checkpoints import Checkpoints
from keras_committee.data import Splits
from keras_committee.errors import CommitteeError, DivergedError, IncompleteError, RecipeError, RunError
from keras_committee.metrics.intervals import few_images_note
from keras_committee.precision import training_device
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown
from keras_committee.training.devices import choose_num_workers, enable_determinism, make_strategy, translate_oom
from keras_committee.training.distillation import check_teacher
from keras_committee.training.lease import release
from keras_committee.training.multihost import SingleHost, make_host_group
from keras_committee.training.num_workers import choose_measured
from keras_committee.training.reporting import Monitor, TrainingOptions
from keras_committee.training.supervisor import LocalBackend, Supervisor
from keras_committee.training.temp_dir import own_temp_dir
from keras_committee.training.trainer import train_member
from keras_committee.training_run import (
    check_chains,
    finished_and_missing,
    load_training_data,
    num_parallel,
    progress,
    record_start,
    startable_members,
    translate_stop,
)

if TYPE_CHECKING:
    from keras_committee.training.ray_cluster import RayCluster


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
    """Train every member of `recipe` that is not finished in `run`; unfinished ones resume.

    A finished member is never trained again. If a member diverges or its process dies, the others continue. The caller
    holds the lock of the run folder.

    Args:
        run: The run folder, for models, histories, TensorBoard logs and the journal.
        recipe: What to train. Worker processes build it from the recipe recorded in the run folder.
        strategy: `"auto"`, `"single"`, `"mirrored"` or `"multiworker"`, see `devices.make_strategy`.
            With `"multiworker"` this host is the chief, and the others call `multihost_worker.run_as_worker`.
        workers: Number of members to train at once, each in a process of its own with its share of the cores or GPUs.
            1 trains in this process; `"auto"` calls `num_workers.choose_measured`.
        members: Indices of the members to train; None trains all. Other processes may train other members of the run.
        options: How to run and protect the members.
        restart: Whether to discard the state of unfinished members first.
        ray_cluster: Ray cluster to train on, joined; None trains on this machine.

    Raises:
        DataError: If the data is invalid; nothing was trained.
        RecipeError: If the strategy, the batch size or a model does not fit, or there is no validation split.
        DivergedError: If every member to train diverged.
        IncompleteError: If some members failed; the others are finished.
        Interrupted: If training was interrupted; the progress is saved.
    """
    options = options or TrainingOptions()
    missing = _missing_members(run, recipe, members, restart)
    if not missing:
        return
    find_device = ray_cluster.member_device if ray_cluster else training_device
    recipe, precision_line = run.begin_precision(recipe, find_device)
    if options.deterministic:
        enable_determinism()
    with own_temp_dir(run), make_host_group(strategy, run, options) as host_group:
        workers = 1 if host_group.is_multi_host else workers
        _train_missing(run, recipe, missing, strategy, workers, options, host_group, ray_cluster, precision_line)


@contextlib.contextmanager
def connect(address: str | None, resources_per_member: str | None = None) -> "Iterator[RayCluster | None]":
    """Join the Ray cluster at `address` for the `with` block; yield None if there is no address.

    Args:
        address: As in `RayCluster`, or None.
        resources_per_member: Resources of each member: `"cpus=2"`, `"gpus=0.5"` or `"cpus=2,gpus=1"`.

    Raises:
        RecipeError: If Ray is not installed, or an argument is invalid.
        ResourceError: If no cluster answers.
    """
    resources = _parse_resources(resources_per_member)
    if address is None:
        if resources:
            raise RecipeError(
                "--resources-per-member needs --ray-address. Add --ray-address ADDRESS. "
                f"Received: --resources-per-member {resources_per_member}"
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


def _missing_members(run: Run, recipe: Recipe, members: Sequence[int] | None, restart: bool) -> list[int]:
    """Return the indices of the members to train, after removing the state and leases that are no longer needed."""
    finished, missing = finished_and_missing(run, recipe, members)
    check_chains(run, recipe, missing, restart=restart)
    _discard_stack(run, missing, restart)
    # State that a kill left between the final model and its removal, and state to discard.
    for index in [*finished, *(missing if restart else [])]:
        with run.member(index).lock():
            shutil.rmtree(run.member(index).state, ignore_errors=True)
    for index in missing:
        release(run.member(index))  # a node lost in an earlier training saves nothing more
    return missing


def _discard_stack(run: Run, missing: list[int], restart: bool) -> None:
    """Remove the common state of members that `stacked.train_stacked` began, if it is no longer needed.

    Raises:
        RunError: If members are in training there.
    """
    if missing and not restart and Checkpoints(run.stacked_state).steps():
        raise RunError(
            f"the members of {run.path} were begun with --stacked. Their state is kept. To resume, add --stacked; to "
            "train them from the start without it, add --restart."
        )
    shutil.rmtree(run.stacked_state, ignore_errors=True)


def _train_missing(
    run: Run,
    recipe: Recipe,
    missing: list[int],
    strategy: str,
    workers: int | Literal["auto"],
    options: TrainingOptions,
    host_group: SingleHost,
    ray_cluster: "RayCluster | None",
    precision_line: str,
) -> None:
    is_automatic = workers == "auto" and not ray_cluster
    if workers == "auto" and ray_cluster:
        num_workers, reason = num_parallel(recipe, missing), ""
    else:
        num_workers, reason = choose_num_workers(workers, len(missing), num_parallel(recipe, missing))
    in_process = num_workers == 1 and not ray_cluster and not is_automatic
    tf_strategy = make_strategy(strategy, recipe.data.batch_size) if in_process else None
    host_group.on_strategy_created(tf_strategy)
    splits = load_training_data(recipe)
    if (teacher := check_teacher(recipe, run, splits)) is not None:
        run.record_teacher(teacher)
    if is_automatic:
        num_workers, reason = choose_measured(run, recipe, splits, missing, strategy, options)
        if num_workers == 1:  # only now, as a strategy takes the GPUs
            tf_strategy = make_strategy(strategy, recipe.data.batch_size)
    record_start(run, recipe, splits, missing, num_workers)
    progress_monitor = Monitor(run, recipe, splits, missing)
    with (
        GracefulShutdown(progress_monitor.note) as shutdown,
        translate_stop(run, recipe, shutdown),
        shutdown.mask_signals(enabled=host_group.is_multi_host),
        progress_monitor as monitor,
    ):
        for line in filter(None, (precision_line, reason, _few_images_note(recipe, splits))):
            monitor.note(line)
        if ray_cluster:
            failures = ray_cluster.train(run, recipe, missing, num_workers, strategy, monitor, shutdown, options)
        elif tf_strategy is None:
            backend = LocalBackend(run, num_workers, strategy, options)
            failures = Supervisor(run, recipe, missing, backend, monitor, shutdown, options).train()
        else:
            failures = _train_in_process(
                run, recipe, missing, splits, tf_strategy, monitor, shutdown, options, host_group
            )
    _raise_failures(run, recipe, missing, failures)
    run.append_event("training_finished")


def _few_images_note(recipe: Recipe, splits: Splits) -> str:
    """Return a warning if the best epoch of each member is chosen on few images, else ""."""
    if recipe.restore_best is None:
        return ""
    return few_images_note("the best epoch of each member is chosen", len(splits.validation))


def _train_in_process(
    run: Run,
    recipe: Recipe,
    missing: list[int],
    splits: Splits,
    tf_strategy: tf.distribute.Strategy,
    monitor: Monitor,
    shutdown: GracefulShutdown,
    options: TrainingOptions,
    host_group: SingleHost,
) -> dict[int, CommitteeError]:
    """Train one member after another in this process, and return the errors of those that diverged."""
    failures: dict[int, CommitteeError] = {}
    pending = list(missing)
    while startable := startable_members(recipe, run.finished_members(), pending):
        pending.remove(index := startable[0])
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


def _raise_failures(run: Run, recipe: Recipe, missing: list[int], failures: dict[int, CommitteeError]) -> None:
    if not failures:
        return
    finished = run.finished_members()
    not_started = [index for index in missing if index not in (*finished, *failures)]
    chains = ""
    if not_started:
        chains = f"\n  not trained, as they start from the weights of these: member {', '.join(map(str, not_started))}"
    run.append_event("training_failed", members=sorted(failures))
    if not finished and all(isinstance(error, DivergedError) for error in failures.values()):
        raise DivergedError("\n".join(str(error) for error in failures.values()) + chains)
    listing = "\n  ".join(f"member {index}: {str(error).splitlines()[0]}" for index, error in sorted(failures.items()))
    raise IncompleteError(
        f"{progress(run, recipe)} finished in {run.path}; failed:\n  {listing}{chains}\n"
        "To retry the failed members from their last checkpoints, run the same command again."
    )


def _parse_resources(text: str | None) -> dict[str, Any]:
    """Return `{"cpus": 2, "gpus": 0.5}` for `"cpus=2,gpus=0.5"`."""
    if text is None:
        return {}
    cpus, gpus = r"cpus=[1-9]\d*", r"gpus=(\d+|0?\.\d+)"  # Ray assigns whole GPUs, or a fraction of one
    if not re.fullmatch(f"{cpus}|{gpus}|{cpus},{gpus}", text):
        raise RecipeError(f"--resources-per-member expected cpus=N, gpus=N or cpus=N,gpus=N. Received: '{text}'")
    pairs = dict(item.split("=") for item in text.split(","))
    return {name: int(number) if name == "cpus" else float(number) for name, number in pairs.items()}
