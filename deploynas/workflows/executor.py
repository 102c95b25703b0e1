"""Tasks in processes of this machine, which never outlive the one that asks.

This module imports nothing heavy: it is the first that a worker imports, which from then on ends
with its parent, also while it still imports what its tasks need.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from deploynas.errors import DeploynasError, InvalidInputError
from deploynas.plugins import Plugins

Shared = TypeVar("Shared")
Given = TypeVar("Given", covariant=True)
Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


class Executor(Protocol[Given]):
    """Runs tasks somewhere. A context manager, on the way out of which nothing goes on running."""

    def submit(
        self,
        task: Callable[Concatenate[Given, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Run ``task(shared, *args, **kwargs)``; the future raises what it raises."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *exception: object) -> None:
        """End whatever still runs."""
        ...


EXECUTORS: Plugins[Callable[[int, Callable[[], Any]], Executor[Any]]] = Plugins(
    "executor", "deploynas.executors", {"local": "deploynas.workflows.executor:LocalExecutor"}
)  # called with tasks at a time, and what opens, once a worker, what all tasks share


@dataclass(frozen=True)
class Workers:
    """How many tasks run at a time, and where.

    Attributes:
        num: Tasks.
        executor: Of :data:`EXECUTORS`.

    Raises:
        InvalidInputError: None.
        UnknownNameError: No such executor.
    """

    num: int = 1
    executor: str = "local"

    def __post_init__(self) -> None:
        if self.num < 1:
            raise InvalidInputError(f"--workers is 1 or more, got {self.num}")
        EXECUTORS.load(self.executor)

    def open(self, open_shared: Callable[[], Shared]) -> Executor[Shared]:
        """Begin."""
        return EXECUTORS.load(self.executor)(self.num, open_shared)


class WorkerError(DeploynasError):
    """A worker process ended in the middle of a task."""

    kind = "worker"


class LocalExecutor(Generic[Shared]):
    """Runs tasks in worker processes, each of which lives for many tasks.

    A context manager. On the way out every worker is killed at once, whatever it does: what is
    wanted must have been waited for. A worker also ends when this process does, and leaves SIGINT
    to it.

    Args:
        num_workers: Tasks at a time.
        open_shared: Called once in every worker; what it returns is the first argument of every
            task there.
    """

    def __init__(self, num_workers: int, open_shared: Callable[[], Shared]) -> None:
        self._open_shared = pickle.dumps(open_shared)
        self._tasks: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._processes: set[SpawnProcess] = set()
        self._is_over = False
        self._num_workers = num_workers
        for _ in range(num_workers):
            threading.Thread(target=self._drive, daemon=True).start()

    def submit(
        self,
        task: Callable[Concatenate[Shared, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Run ``task(shared, *args, **kwargs)`` in a worker.

        The future raises what the task raises, and :class:`WorkerError` where its worker ended.
        """
        future: Future[Result] = Future()
        self._tasks.put((future, pickle.dumps((task, args, kwargs))))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._is_over = True
            for process in self._processes:
                process.kill()
        with contextlib.suppress(queue.Empty):
            while entry := self._tasks.get_nowait():
                entry[0].cancel()
                entry[0].set_running_or_notify_cancel()  # which tells those who wait
        for _ in range(self._num_workers):
            self._tasks.put(None)
        for process in list(self._processes):
            process.join()

    def _drive(self) -> None:
        """Pass tasks to one worker after another: a new one is started where one ended."""
        worker: tuple[SpawnProcess, Connection] | None = None
        while entry := self._tasks.get():
            future, task = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                process, pipe = worker = worker or self._start()
            except OSError as error:
                future.set_exception(WorkerError(f"cannot start a worker: {error.strerror}"))
                continue
            try:
                pipe.send_bytes(task)
                succeeded, value = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                worker = None
                future.set_exception(_death(process))
            else:
                future.set_result(value) if succeeded else future.set_exception(value)

    def _start(self) -> tuple[SpawnProcess, Connection]:
        """A worker and its conversation."""
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(there,), daemon=True
        )
        with self._lock:
            if self._is_over:
                raise InterruptedError(errno.EINTR, "the executor was left")
            resource_tracker.ensure_running()  # it would unblock the signal
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()  # with the signal blocked, as long as it lives
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._processes.add(process)
        there.close()
        with contextlib.suppress(OSError):  # it has ended, which the first task will meet
            here.send_bytes(self._open_shared)
        return process, here


ALONE = Workers()  # one at a time, in this very process


def _death(process: SpawnProcess) -> WorkerError:
    process.join()
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return WorkerError(
            "a worker process was killed, as the system does when memory runs out",
            "with fewer --workers less is needed; what was done is kept",
        )
    how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
    return WorkerError(f"a worker process ended ({how})", "run it again: what was done is kept")


def _work(pipe: Connection) -> None:
    """Answer tasks until the other side ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        opener: bytes | None = pipe.recv_bytes()
        shared = None
        while True:
            message = pipe.recv_bytes()
            try:
                if opener is not None:
                    shared, opener = pickle.loads(opener)(), None
                task, args, kwargs = pickle.loads(message)
                answer = pickle.dumps((True, task(shared, *args, **kwargs)))
            except Exception as error:
                answer = pickled(error)
            pipe.send_bytes(answer)


def pickled(error: Exception) -> bytes:
    """An error as an answer, with where it was raised; as its text where it cannot travel."""
    trace = "".join(traceback.format_exception(error))
    error.add_note(trace)
    with contextlib.suppress(Exception):
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
        return answer
    if isinstance(error, DeploynasError):
        return pickle.dumps((False, DeploynasError(str(error))))
    return pickle.dumps((False, RuntimeError(trace)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
