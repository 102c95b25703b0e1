"""The agent: receives models on standard input, measures, and streams samples back.

A message is one JSON document a line; ``bytes`` says how many raw bytes follow it. ``file`` is
answered only where it fails, ``describe`` by an identity's fields, ``measure`` by a line a round
and then ``done``. It keeps nothing but a temporary folder, and ends with its input.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from deploynas.errors import DeviceError, ModelError
from deploynas.onboard.conversation import Examination, open_worker
from deploynas.onboard.folders import own, sweep
from deploynas.onboard.parts import ModelFolder
from deploynas.onboard.processor import worker_command
from deploynas.onboard.timing import Round, Samples, StopRule, run_rounds

ALIVE_SECONDS = 5.0
_DESCRIBE = (
    "import sys; sys.path[0] = sys.argv[1]; import json; "
    "from deploynas.onboard.processor import describe; "
    "print(json.dumps(describe(sys.argv[2], int(sys.argv[3]))))"
)


def serve(source: BinaryIO, folder: Path) -> None:
    """Answer until ``source`` ends; never returns.

    Args:
        source: The conversation.
        folder: Holds this package, and what is received; removed at the end.
    """
    sweep(folder.parent)
    owned = own(folder)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not reach the conversation
    lock = threading.Lock()

    def say(answer: Mapping[str, object]) -> None:
        with lock:
            try:
                out.write(json.dumps(answer) + "\n")
                out.flush()
            except OSError:
                leave()

    def leave(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # the worker ends with its input

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)
    models = ModelFolder(folder)
    questions: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        try:
            for line in iter(source.readline, b""):
                message = json.loads(line)
                content = source.read(message.get("bytes", 0))
                if message["do"] == "file":
                    try:
                        models.put(message["digest"], message["parts"], content)
                    except (OSError, ValueError, MemoryError) as error:
                        say(failure(error, folder))
                else:
                    questions.put(message)
        except Exception as error:  # an agent that cannot hear must not stay
            say(failure(error, folder))
        finally:
            leave()

    def beat() -> None:
        while True:
            say({"alive": True})
            threading.Event().wait(ALIVE_SECONDS)

    for work in (listen, beat):
        threading.Thread(target=work, daemon=True).start()
    try:
        with owned:
            answer_all(questions, models, folder, say)
    finally:
        leave()


def answer_all(
    questions: queue.Queue[dict[str, Any]],
    models: ModelFolder,
    folder: Path,
    say: Callable[[Mapping[str, object]], None],
) -> None:
    """Answer questions one after the other; an error is an answer, whatever it is."""
    while True:
        message = questions.get()
        try:
            if message["do"] == "describe":
                say({"identity": described(message["provider"], message["threads"], folder)})
            elif message["do"] == "examine":
                say(asdict(examined(message, models)))
            else:
                for one in measured(message, models):
                    say({"round": asdict(one)})
                say({"done": True})
        except Exception as error:
            say(failure(error, folder))


def failure(error: Exception, folder: Path) -> dict[str, object]:
    """An error as an answer."""
    if isinstance(error, ModelError):
        return {
            "error": str(error), "runtime": error.runtime, "model": error.model,
            "reason": error.reason,
        }  # fmt: skip
    if isinstance(error, OSError):
        free = shutil.disk_usage(folder).free / 1e6 if folder.exists() else 0.0
        return {"error": f"cannot write {folder}: {error.strerror} ({free:.0f} MB are free)"}
    if isinstance(error, (DeviceError, ValueError)):
        return {"error": str(error)}
    return {"error": f"{type(error).__name__} there: {error}"}


def described(provider: str, threads: int, folder: Path) -> dict[str, object]:
    """What :func:`deploynas.onboard.processor.describe` says, asked in a process of its own.

    Raises:
        DeviceError: ONNX Runtime or numpy is missing, or does not survive its import.
    """
    command = [sys.executable, "-c", _DESCRIBE, str(folder), provider, str(threads)]
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    python = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
    if answer.returncode == 0:
        return dict(json.loads(answer.stdout.splitlines()[-1]))
    lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
    if answer.returncode < 0:
        name = signal.Signals(-answer.returncode).name
        raise DeviceError(
            f"onnxruntime ends {python} there by {name} when it is imported: this build does not "
            "suit the processor",
            "install another version of it there",
        )
    if "ModuleNotFoundError" in lines[-1]:
        missing = lines[-1].rpartition("'")[0].rpartition("'")[2]
        raise DeviceError(f"{python} there has no {missing}")
    raise DeviceError(f"{python} there: {lines[-1].partition(': ')[2] or lines[-1]}")


def examined(message: Mapping[str, Any], models: ModelFolder) -> Examination:
    """Peak memory and times of nodes of the model that a message names."""
    command = worker_command(message["provider"], message["threads"], message["session"])
    with open_worker(command, [], message["runtime"]) as worker:
        return worker.examine(models.path(message["digest"]), "the model")


def measured(message: Mapping[str, Any], models: ModelFolder) -> Iterator[Round]:
    """The rounds that a message asks for."""
    provider, threads = message["provider"], message["threads"]
    return run_rounds(
        lambda session: worker_command(provider, threads, session),
        message["runtime"],
        [models.path(digest) for digest in message["references"]],
        {name: models.path(digest) for name, digest in message["models"].items()},
        StopRule(**message["rule"]),
        {name: Samples(**fields) for name, fields in message["samples"].items()},
        message["seed"],
    )
