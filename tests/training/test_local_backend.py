"""Processes of the local backend that end before, while or after they are signaled."""

import subprocess
import time

import pytest

from keras_committee.run import Run
from keras_committee.training import TrainingOptions, supervisor
from keras_committee.training.supervisor import Exit, LocalBackend


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a process in place of a worker; returns the backend and the attempt."""
    monkeypatch.setattr(supervisor, "_STACK_DUMP_SECONDS", 0.2)
    backend = LocalBackend(Run(tmp_path), 1, "single", TrainingOptions())

    def start(*command):
        def spawn(index, task_spec, environment):
            return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(task_spec["messages"],))

        monkeypatch.setattr(backend, "_spawn", spawn)
        return backend, backend.start(0, whole_machine=False)

    return start


def wait_for_exit(backend):
    events = (event for _ in range(50) for _, event in backend.poll(0.1))
    return next(event for event in events if isinstance(event, Exit))


# SIGUSR1 ends a process that has not yet registered its handler.
@pytest.mark.parametrize("command", [("sleep", "60"), ("true",), ("env", "--ignore-signal=USR1", "sleep", "60")])
def test_a_stalled_worker_is_a_died_one_whether_or_not_it_survives_the_dump_of_its_stack(start, command):
    backend, attempt = start(*command)
    backend.kill(attempt, "member 0 sent no message for 15 s and was killed")
    exited = wait_for_exit(backend)
    assert exited.cause == "member 0 sent no message for 15 s and was killed (its stack traces are in its log)"
    assert exited.error is None
    assert not exited.out_of_memory


def test_a_worker_that_ended_just_before_it_is_stopped_keeps_its_exit_code(start):
    backend, attempt = start("sh", "-c", "exit 7")
    time.sleep(0.3)
    backend.stop(attempt)
    assert wait_for_exit(backend).fields == {"code": 7}
    backend.close()
