"""Tasks in real processes: what they share, how they fail, and that none outlives its executor."""

from __future__ import annotations

import math
import multiprocessing
import operator
import os
import pickle
import signal
import time
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import pytest

from deploynas.errors import DeploynasError, UnknownNameError
from deploynas.workflows.executor import LocalExecutor, WorkerError, pickled


class Counted:
    """What is heavy to send: counts how often it is."""

    sent = 0

    def __reduce__(self):
        Counted.sent += 1
        return os.getpid, ()  # what arrives is the worker's own number


def test_what_tasks_share_is_sent_and_opened_once_a_worker(tmp_path):
    before = Counted.sent
    # max(what is shared, 0): the number of the process that a task ran in
    with LocalExecutor(2, partial(operator.attrgetter("real"), Counted())) as executor:
        numbers = {executor.submit(max, 0).result() for _ in range(8)}
        running = [executor.submit(operator.add, i) for i in range(20)]
        numbers |= {future.result() - i for i, future in enumerate(running)}
    assert Counted.sent - before == 1
    assert 1 <= len(numbers) <= 2
    assert os.getpid() not in numbers


def test_a_task_that_fails_is_an_error_and_the_worker_goes_on():
    with LocalExecutor(1, os.getpid) as executor:
        failed = executor.submit(divmod, 0)
        with pytest.raises(ZeroDivisionError) as caught:
            failed.result()
        assert "in _work" in caught.value.__notes__[0]  # where it was raised
        number = executor.submit(max, 0).result()
        assert executor.submit(max, 0).result() == number


def test_errors_travel():
    for error in (DeploynasError("a", "b"), UnknownNameError("x", "y", ["z"]), OSError(2, "no")):
        succeeded, copy = pickle.loads(pickled(error))
        assert not succeeded
        assert str(copy) == str(error)
        assert isinstance(copy, DeploynasError) == isinstance(error, DeploynasError)
    assert "no such thing" in str(pickle.loads(pickled(_Unsendable("no such thing")))[1])


class _Unsendable(Exception):
    def __reduce__(self):
        raise TypeError


def test_a_worker_that_is_killed_is_one_line_and_another_takes_its_place():
    with LocalExecutor(1, os.getpid) as executor:
        first = executor.submit(max, 0).result()
        with pytest.raises(WorkerError, match="memory runs out .*fewer --workers") as caught:
            executor.submit(os.kill, signal.SIGKILL).result()
        assert "\n" not in str(caught.value)
        with pytest.raises(WorkerError, match=r"ended \(Segmentation fault\)"):
            executor.submit(os.kill, signal.SIGSEGV).result()
        assert executor.submit(max, 0).result() != first
    with (
        LocalExecutor(1, partial(int, 7)) as executor,
        pytest.raises(WorkerError, match="exit code 7"),
    ):
        executor.submit(os._exit).result()


def test_what_cannot_be_opened_is_the_error_of_each_task():
    with LocalExecutor(1, partial(math.sqrt, -1)) as executor:
        for _ in range(2):
            with pytest.raises(ValueError, match="math domain|nonnegative"):
                executor.submit(max, 0).result()


def test_the_end_waits_for_no_task():
    started, sleeping = time.monotonic(), []

    def interrupted():
        with LocalExecutor(2, partial(float, 60)) as executor:
            sleeping.extend(executor.submit(time.sleep) for _ in range(5))
            while len(multiprocessing.active_children()) < 2:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 5  # another thread may be reaping them
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()
    assert not wait(sleeping, 10).not_done
    assert all(future.cancelled() or future.exception() for future in sleeping)


def test_workers_leave_an_interrupt_to_their_parent():
    with LocalExecutor(1, os.getpid) as executor:
        number = executor.submit(max, 0).result()
        os.kill(number, signal.SIGINT)
        assert executor.submit(max, 0).result() == number
        state = Path(f"/proc/{number}/status")
        if state.exists():
            (blocked,) = (x for x in state.read_text().splitlines() if x.startswith("SigBlk"))
            assert int(blocked.split()[1], 16) & 1 << signal.SIGINT - 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
