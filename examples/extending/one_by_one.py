"""An executor in one file: every task in a fresh interpreter of its own, some at a time.

As a batch system would: what all tasks share goes into a file once, a task into another, its
answer into a third. Replace ``subprocess`` by ``srun`` or ``ssh``, and the files by ones that all
see.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from deploynas.workflows.executor import WorkerError

RUN = """
import pickle, sys
opener, task, answer = sys.argv[1:]
with open(opener, "rb") as file:
    shared = pickle.load(file)()
with open(task, "rb") as file:
    function, args, kwargs = pickle.load(file)
try:
    found = (True, function(shared, *args, **kwargs))
except Exception as error:
    found = (False, error)
with open(answer, "wb") as file:
    pickle.dump(found, file)
"""


class OneByOne:
    """Runs each task in an interpreter that ends with it.

    Args:
        num_workers: Tasks at a time.
        open_shared: Called in every interpreter; what it returns is the task's first argument.
    """

    def __init__(self, num_workers: int, open_shared: Callable[[], Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._opener = Path(self._folder.name, "shared")
        self._opener.write_bytes(pickle.dumps(open_shared))
        self._threads = ThreadPoolExecutor(num_workers)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._num, self._is_over = 0, False

    def submit(self, task: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``task(shared, *args, **kwargs)``."""
        self._num += 1
        file = Path(self._folder.name, str(self._num))
        file.write_bytes(pickle.dumps((task, args, kwargs)))
        return self._threads.submit(self._run, file)

    def _run(self, file: Path) -> Any:
        answer = file.with_suffix(".answer")
        with self._lock:
            if self._is_over:
                raise WorkerError("the executor was left")
            process = subprocess.Popen([sys.executable, "-c", RUN, self._opener, file, answer])
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        if not answer.exists():
            raise WorkerError(f"a task ended with exit code {code}")
        succeeded, value = pickle.loads(answer.read_bytes())
        if succeeded:
            return value
        raise value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_over = True
            for process in self._running:
                process.kill()
        self._threads.shutdown()
        self._folder.cleanup()
