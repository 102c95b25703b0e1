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
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from deploynas.errors import DeviceError, MissingModuleError, ModelError
from deploynas.onboard.conversation import Examination, open_worker
from deploynas.onboard.folders import own, sweep
from deploynas.onboard.life import Life, LifeRule, lives
from deploynas.onboard.parts import ModelFolder
from deploynas.onboard.runtime import Array, packed, unpacked, worker_command
from deploynas.onboard.timing import Round, Samples, StopRule, run_rounds

ALIVE_SECONDS = 5.0
RUNTIME_FILE = "runtime.py"  # in the folder, beside this package


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
                        models.put(message["digest"], message["files"], message["parts"], content)
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
                command = commands(message, folder)(0)
                say({"identity": described(command, message["runtime"])})
            elif message["do"] == "examine":
                say(asdict(examined(message, models)))
            elif message["do"] == "live":
                for life in lived(message, models):
                    say({"life": asdict(life)})
                say({"done": True})
            elif message["do"] == "answer":
                say({"outputs": packed(answered(message, models))})
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


def described(command: Sequence[str], runtime: str) -> dict[str, Any]:
    """What a worker says of itself, see :meth:`deploynas.onboard.runtime.Launcher.facts`.

    Raises:
        DeviceError: The runtime or numpy is missing, or does not survive its import.
    """
    python = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
    with open_worker(command, [], runtime) as worker:
        try:
            return worker.describe()
        except MissingModuleError as error:
            raise DeviceError(f"{python} there has no {error.module}") from None
        except DeviceError as error:
            code = worker.exit_code
            if code is None or code >= 0:
                raise DeviceError(f"{python} there: {error}") from None
            name = signal.Signals(-code).name
            raise DeviceError(
                f"{runtime} ends {python} there by {name} when it is imported: this build does "
                "not suit the processor",
                "install another version of it there",
            ) from None


def commands(message: Mapping[str, Any], folder: Path) -> Callable[[int], list[str]]:
    """The command lines of the workers that a message asks for, by their sessions."""
    file, provider, threads = folder / RUNTIME_FILE, message["provider"], message["threads"]
    return lambda session: worker_command(file, provider, threads, session)


def examined(message: Mapping[str, Any], models: ModelFolder) -> Examination:
    """Peak memory and times of nodes of the model that a message names."""
    command = commands(message, models.folder)(message["session"])
    with open_worker(command, [], message["runtime"]) as worker:
        return worker.examine(models.path(message["digest"]), "the model")


def lived(message: Mapping[str, Any], models: ModelFolder) -> Iterator[Life]:
    """The lives of a call of the model that a message names."""
    return lives(
        commands(message, models.folder),
        message["runtime"],
        models.files(message["digest"]),
        "the model",
        LifeRule(**message["rule"]),
    )


def answered(message: Mapping[str, Any], models: ModelFolder) -> dict[str, Array]:
    """What the model that a message names answers."""
    command = commands(message, models.folder)(0)
    paths = [("the model", models.path(message["digest"]))]
    with open_worker(command, paths, message["runtime"]) as worker:
        outputs = worker.answers(0, unpacked(message["feeds"]))
    return {str(i): output for i, output in enumerate(outputs)}


def measured(message: Mapping[str, Any], models: ModelFolder) -> Iterator[Round]:
    """The rounds that a message asks for."""
    return run_rounds(
        commands(message, models.folder),
        message["runtime"],
        [models.path(digest) for digest in message["references"]],
        {name: models.path(digest) for name, digest in message["models"].items()},
        StopRule(**message["rule"]),
        {name: Samples(**fields) for name, fields in message["samples"].items()},
        message["seed"],
    )
