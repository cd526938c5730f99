"""A process that has imported TensorFlow once and forks Python programs, as each import takes 6 to 9 seconds.

`ForkServer.popen` has the arguments and the result of `subprocess.Popen`. A program that is forked becomes a child of
the process that requested it (which is the subreaper of its descendants, Linux only), so it can be waited for, killed
and measured like any other. The server itself never starts TensorFlow's runtime: forking after that is unsafe.
"""

import array
import ctypes
import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
import types
import warnings

PR_SET_CHILD_SUBREAPER = 36
FIRST_FREE_FD = 500  # above all that a program or its parent has open


class ForkServer:
    """A running server, seen from a process that requests forks.

    Args:
        control: The socket to the server.
        process: The server, unless it is a fork.
    """

    def __init__(self, control: socket.socket, process: subprocess.Popen | None = None):
        self._control, self._process = control, process

    @classmethod
    def start(cls) -> "ForkServer":
        """Start a server as a new process."""
        become_subreaper()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
        return cls(ours, process)

    @classmethod
    def fork(cls) -> "ForkServer":
        """Start a server as a fork of this process, which has not started TensorFlow's runtime."""
        become_subreaper()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            serve(theirs)
            os._exit(0)
        theirs.close()
        return cls(ours)

    def popen(self, *args, nested: bool = False, **kwargs) -> subprocess.Popen:
        """Start a program like `subprocess.Popen`; with `nested` the workers that it starts are forked, too."""
        return _ForkedPopen(self, nested, *args, **kwargs)

    def request(self, order: dict, fds: list[int]) -> int:
        """Fork a program and return its process id."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._control.sendmsg([json.dumps(order).encode()], rights)
        return int(self._control.recv(64))

    def close(self) -> None:
        self._control.close()
        if self._process:
            self._process.wait()


class _ForkedPopen(subprocess.Popen):
    def __init__(self, server, nested, *args, **kwargs):
        self._server, self._nested = server, nested
        super().__init__(*args, **kwargs)

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
        start_new_session, process_group,
    ):  # fmt: skip
        sources = {0: p2cread, 1: c2pwrite, 2: errwrite, **{fd: fd for fd in pass_fds}}
        sources = {target: source for target, source in sources.items() if source != -1}
        order = {
            "args": list(map(str, args)),
            "targets": list(sources),
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "new_session": start_new_session,
            "nested": self._nested,
        }
        self.pid = self._server.request(order, list(sources.values()))
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def become_subreaper() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def serve(control: socket.socket) -> None:
    """Fork the programs that are requested, until the other side is closed."""
    while True:
        text, fds, _, _ = socket.recv_fds(control, 1 << 20, 16)
        if not text:
            return
        reader, writer = os.pipe()
        intermediate = os.fork()
        if intermediate == 0:
            pid = os.fork()
            if pid == 0:
                for fd in (reader, writer):
                    os.close(fd)
                control.close()
                _run(json.loads(text), fds)
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.waitpid(intermediate, 0)  # from now on the program is the child of the subreaper
        control.send(os.read(reader, 64))
        for fd in (reader, writer, *fds):
            os.close(fd)


def _run(order: dict, fds: list[int]) -> None:
    """Become the program: its files, environment and arguments; never return."""
    code = 1
    try:
        if order["new_session"]:
            os.setsid()
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_FREE_FD) for fd in fds]
        for fd in fds:
            os.close(fd)
        for copy, target in zip(copies, order["targets"], strict=True):
            os.dup2(copy, target)
            os.close(copy)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")  # a fork cannot restart its program
        if order["nested"]:
            _fork_workers()
        code = _run_program(order["args"][1:])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_program(args: list[str]) -> int:
    warnings.simplefilter("ignore")
    if args[0] == "-m":
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    elif args[0] == "-c":
        sys.argv = ["-c", *args[2:]]
        exec(args[1], {"__name__": "__main__"})
    else:
        sys.argv = args
        runpy.run_path(args[0], run_name="__main__")
    return 0


def _fork_workers() -> None:
    """Make the supervisor of this process fork its workers from a server of its own."""
    from keras_committee.training import supervisor

    server = ForkServer.fork()
    supervisor.subprocess = types.SimpleNamespace(Popen=server.popen, PIPE=subprocess.PIPE)


if __name__ == "__main__":
    import keras_committee.training
    import keras_committee.training.worker  # noqa: F401

    serve(socket.socket(fileno=int(sys.argv[1])))
