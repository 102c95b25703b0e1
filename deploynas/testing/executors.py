"""The promises that all executors share."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from deploynas.testing.report import promises, require
from deploynas.workflows.executor import Executor

NUM_TASKS = 6


@promises
def check_executor(make: Callable[[int, Callable[[], Any]], Executor[Any]]) -> None:
    """Check an executor with two workers.

    Every task is answered with what it returns, in whatever order they end; what all tasks share
    is opened where they run, and is their first argument; an error is the future's, and tasks go
    on; what was not waited for is not waited for on the way out.

    Args:
        make: Tasks at a time and what opens that -> the executor.

    Raises:
        AssertionError: One of them is not as promised.
    """
    with make(2, partial(int, 40)) as executor:
        sums = [executor.submit(operator.add, i) for i in range(NUM_TASKS)]
        found = [one.result() for one in sums]
        require(found == [40 + i for i in range(NUM_TASKS)], f"answers are {found}")
        failed = executor.submit(operator.floordiv, 0)
        try:
            failed.result()
        except ZeroDivisionError:
            pass
        else:
            require(False, "what a task raises is not raised")
        require(executor.submit(max, 50).result() == 50, "no task runs after one that failed")
    with make(2, os.getpid) as executor:
        require(executor.submit(max, 0).result() != os.getpid(), "tasks run in the asking process")
    with make(1, partial(int, 0)) as executor:
        waiting: list[Future[Any]] = [
            executor.submit(_wait, seconds) for seconds in (600.0, 600.0)
        ]
    deadline = time.monotonic() + 30
    while not all(one.done() for one in waiting) and time.monotonic() < deadline:
        time.sleep(0.05)
    require(
        all(one.done() for one in waiting), "a task that nobody waits for goes on after the end"
    )
    for one in waiting:
        if not one.cancelled():
            require(_has_failed(one), "a task that was ended has an answer")


def _wait(shared: int, seconds: float) -> int:
    time.sleep(seconds)
    return shared


def _has_failed(future: Future[Any]) -> bool:
    try:
        return future.exception() is not None
    except CancelledError:
        return True
