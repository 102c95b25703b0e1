"""The link to a device elsewhere: a command's interpreter, what it is sent, and its answers.

The command (``ssh pi@board python3``) starts a plain interpreter; the agent travels through its
standard input. No file of ours stays there, and no argument needs quoting for a shell in between.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import deploynas.errors
import deploynas.onboard
from deploynas.device.wire import Parcel
from deploynas.errors import DeviceError, ModelError
from deploynas.onboard.agent import RUNTIME_FILE
from deploynas.onboard.runtime import PythonRuntime

START_SECONDS = 60.0  # that a device may take to say a first word
SILENCE_SECONDS = 60.0  # that it may be silent later: it says every few seconds that it is alive
MAX_LINE_BYTES = 50_000_000
MAX_UNREAD_LINES = 10_000
MAX_GREETING_LINES = 200  # that a login may print before Python speaks
PIP_HINT = (
    "there: pip install numpy {package}; or name a Python that has them: "
    "--device 'ssh:HOST venv/bin/python'"
)
_HELLO = "deploynas-python"
# -i: the interpreter reads a statement a line, and this one takes over the rest. No file of the
# folder that it starts in may shadow a module.
_FIRST_LINE = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import os; "
    f'print("{_HELLO} %d.%d" % sys.version_info[:2]); sys.stdout.flush(); '
    '_f = os.fdopen(os.dup(0), "rb"); exec(_f.read(int(_f.readline())))'
)
_UNPACK = """
import io, os, shutil, tempfile, zipfile
from pathlib import Path
def give_up(text):
    print("deploynas: " + text, file=sys.stderr, flush=True)
    os._exit(1)
folder = None
try:
    content = _f.read({size})
    try:
        import numpy
    except ModuleNotFoundError:
        give_up("missing: numpy")
    if tuple(map(int, numpy.__version__.split(".")[:2])) < (1, 21):
        give_up("its numpy is " + numpy.__version__ + ", and 1.21 is needed")
    folder = tempfile.mkdtemp(prefix="deploynas-")
    zipfile.ZipFile(io.BytesIO(content)).extractall(folder)
    sys.path.insert(0, folder)
    from deploynas.onboard.agent import serve
    serve(_f, Path(folder))
except BaseException as error:
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    give_up("it cannot start the agent: " + (str(error) or type(error).__name__))
"""
_SSH_FAILURES = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed: another machine answers, or it was installed anew",
        "find out which; then ssh-keygen -R {host}, and connect once by hand",
    ),
    (
        r"Host key verification failed",
        "its host key is not known here",
        "connect once by hand and compare the key: ssh {host}",
    ),
    (
        r"Permission denied",
        "it refused every key; no password is asked for here",
        "try: ssh {host}; install a key with ssh-copy-id {host}",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "no host of that name",
        "try: ssh {host}",
    ),
    (
        r"Connection (refused|timed out)|No route to host|is unreachable|Operation timed out",
        "it does not answer",
        "is it on, and its ssh server running? try: ssh {host}",
    ),
)


def package(runtime: PythonRuntime, extra: Mapping[str, bytes] | None = None) -> bytes:
    """A zip of what runs on a device that has ``runtime``, with ``extra`` files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deploynas/__init__.py", "")
        archive.writestr("deploynas/errors.py", Path(deploynas.errors.__file__).read_bytes())
        for path in sorted(Path(deploynas.onboard.__file__).parent.glob("*.py")):
            archive.writestr(f"deploynas/onboard/{path.name}", path.read_bytes())
        archive.writestr(RUNTIME_FILE, runtime.file.read_bytes())
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return content.getvalue()


class Link:
    """A running agent and its conversation.

    Args:
        name: What messages call the device.
        command: Starts a Python of the device, with our standard input and output.
        runtime: What it runs networks by.

    Raises:
        DeviceError: It cannot be reached, lacks something, or stopped answering.
    """

    def __init__(self, name: str, command: list[str], runtime: PythonRuntime) -> None:
        self._name, self._command, self._runtime = name, command, runtime
        self.bytes_sent = 0
        self._sent: set[str] = set()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                [*command, "-i"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                start_new_session=True,  # so that what it starts can be ended with it
            )  # fmt: skip
        except OSError as error:
            self._log.close()
            raise DeviceError(f"{name}: cannot start {command[0]!r}: {error.strerror}") from None
        self._speaks = False  # Python does, there
        self._answers: queue.Queue[bytes | None] = queue.Queue(MAX_UNREAD_LINES)
        self._outbox: queue.Queue[bytes | None] = queue.Queue()
        ended = threading.Event()
        # neither holds this object, so that it can be forgotten
        for work, mail in ((_read, self._answers), (_write, self._outbox)):
            threading.Thread(target=work, args=(self._process, mail, ended), daemon=True).start()
        self.close = weakref.finalize(self, _end, self._process, self._outbox, self._log, ended)
        self._greet()

    def _greet(self) -> None:
        self._outbox.put(_FIRST_LINE.encode() + b"\n")
        heard, found = b"", None
        for _ in range(MAX_GREETING_LINES):
            heard = self._line(START_SECONDS)
            if found := re.match(rf"{_HELLO} (\d+)\.(\d+)".encode(), heard.strip()):
                break
        if found is None:
            self._fail(f"it does not start Python, but says {heard[:60]!r}")
        self._speaks = True
        version = int(found[1]), int(found[2])
        if version < (3, 9):
            self._fail(
                f"its Python is {version[0]}.{version[1]}, and 3.9 is needed",
                "name another one: --device 'ssh:HOST venv/bin/python'",
            )
        content = package(self._runtime)
        unpack = _UNPACK.format(size=len(content)).encode()
        self.post(str(len(unpack)).encode() + b"\n" + unpack + content)

    def send(self, message: Mapping[str, object], content: bytes = b"") -> None:
        """Send a message; the answer comes later."""
        whole = {**message, "bytes": len(content)}
        self.post(json.dumps(whole).encode() + b"\n" + content)

    def put(self, path: Path, source: Path) -> str:
        """Send what was converted from ``source``, if it is not there; returns its digest."""
        parcel = Parcel.of(self._runtime.files(path), source)
        if parcel.digest not in self._sent:
            self._sent.add(parcel.digest)
            what = {"digest": parcel.digest, "files": parcel.files, "parts": parcel.parts}
            self.send({"do": "file", **what}, parcel.literal)
        return parcel.digest

    def receive(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            DeviceError: An error is the answer, or there is none.
        """
        while True:
            line = self._line(SILENCE_SECONDS)
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            if not isinstance(answer, dict):
                self._fail(f"it says something unexpected: {line[:80]!r}")
            if "model" in answer:
                runtime = f"{self._name}: {answer.get('runtime')}"
                raise ModelError(runtime, str(answer["model"]), str(answer.get("reason")))
            if "error" in answer:
                text = str(answer["error"])
                hint = PIP_HINT.format(package=self._runtime.package)
                raise DeviceError(
                    f"{self._name}: {text}", hint if "there has no" in text else None
                )
            if "alive" not in answer:
                return answer

    def _line(self, seconds: float) -> bytes:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            hint = None if self._speaks else "the command must pass its arguments on to a Python"
            self._fail(f"it has said nothing for {seconds:.0f} seconds", hint)
        if line is None:
            self._fail(None)
        return line

    def _fail(self, reason: str | None, hint: str | None = None) -> NoReturn:
        """Raise what went wrong; where ``reason`` is None, what the process said last."""
        if reason is not None:
            _kill(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").replace(">>> ", "")
        self.close()
        lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
        if reason is None:
            code, package = self._process.returncode, self._runtime.package
            reason, hint = _reason(lines, code, self._command, self._speaks)
            hint = hint and hint.replace("{package}", package)
        raise DeviceError(f"{self._name}: {reason}", hint)

    def post(self, content: bytes) -> None:
        """Send bytes as they are."""
        self.bytes_sent += len(content)
        self._outbox.put(content)


Mail = queue.Queue[bytes | None]


def _read(process: subprocess.Popen[bytes], answers: Mail, ended: threading.Event) -> None:
    assert process.stdout is not None
    with process.stdout, contextlib.suppress(OSError, ValueError):
        while (line := process.stdout.readline(MAX_LINE_BYTES)) and not ended.is_set():
            _put(answers, line, ended)
    _put(answers, None, ended)


def _put(mail: Mail, content: bytes | None, ended: threading.Event) -> None:
    """Wait for room: a device that says without end what nobody reads must not fill memory."""
    while not ended.is_set():
        with contextlib.suppress(queue.Full):
            return mail.put(content, timeout=0.2)


def _write(process: subprocess.Popen[bytes], outbox: Mail, ended: threading.Event) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        while (content := outbox.get()) is not None:
            process.stdin.write(content)
            process.stdin.flush()
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and what it started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(
    process: subprocess.Popen[bytes], outbox: Mail, log: IO[bytes], ended: threading.Event
) -> None:
    """End the agent by the end of its input, or its command by force."""
    outbox.put(None)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    _kill(process)
    process.wait()
    ended.set()
    log.close()


def _reason(
    lines: list[str], code: int | None, command: list[str], speaks: bool
) -> tuple[str, str | None]:
    """Why a command ended, by what it said, and what to do."""
    said = "\n".join(lines)
    if found := re.search(r"^deploynas: missing: (\w+)", said, re.MULTILINE):
        return f"{command[-1]} there has no {found[1]}", PIP_HINT
    if found := re.search(r"^deploynas: (.*)", said, re.MULTILINE):
        return found[1], None
    if Path(command[0]).name == "ssh" and code == 255 and not speaks:
        host = command[-2] if len(command) > 2 else "HOST"
        for pattern, reason, hint in _SSH_FAILURES:
            if re.search(pattern, said):
                return reason, hint.format(host=host)
    last = lines[-1] if lines else f"exit code {code}"
    if speaks:
        return f"the connection ended ({last})", "run it again: what was measured is kept"
    if code == 127 or re.search(r"not found|No such file", said):
        return (
            f"there is no {command[-1]!r} there",
            "name its Python: --device 'ssh:HOST venv/bin/python'",
        )
    return f"it does not start Python, but ends ({last})", None
