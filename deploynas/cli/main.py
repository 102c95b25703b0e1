"""The ``deploynas`` command. Heavy imports live inside the verbs, so that --help is fast."""

from __future__ import annotations

import atexit
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from deploynas import __version__
from deploynas.cli.console import print_json
from deploynas.errors import EXIT_ERROR, DeploynasError

app = typer.Typer(
    name="deploynas",
    help="Hardware-aware architecture search that deploys what it finds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
# typer brings its own click since 0.2x: take the class from where it surely comes from
_ClickException: Any = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)
VERBS = (
    "spaces", "devices", "profile", "profiles", "train", "search", "retrain", "export", "check",
    "inspect", "adapt", "compare", "strategies", "demo",
)  # fmt: skip
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
MAX_DETAILS = 20  # lines below an error
for verb in VERBS:
    import_module(f"deploynas.cli.{verb}").register(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"deploynas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print it and stop."
        ),
    ] = False,
) -> None:
    """What goes before a verb."""


def main() -> None:
    """Run; a :class:`DeploynasError` or a signal becomes one line and its exit code."""
    as_json = "--json" in sys.argv
    try:
        with _signals(as_json):
            code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except DeploynasError as error:
        _say(error.kind, str(error), as_json, error.details)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "deploynas":
            raise
        message = f"this needs the package {error.name} (pip install 'deploynas[search]')"
        _fail("missing-dependency", message, EXIT_ERROR, as_json)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        does = "write" if error.errno in UNWRITABLE else "use"
        _fail("system", f"cannot {does}{where}: {error.strerror or error}", EXIT_ERROR, as_json)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED, 128 + signal.SIGINT, as_json)
    except _ClickException as error:
        error.show()
        sys.exit(error.exit_code)


_INTERRUPTED = "interrupted: what was done is kept, and the same command goes on from it"


class _Stop(BaseException):
    """A signal asks for the end. Not KeyboardInterrupt, which typer makes a mute exit code."""


@contextmanager
def _signals(as_json: bool) -> Iterator[None]:
    """SIGINT and SIGTERM end what goes on, which tidies up; one more ends the process at once."""
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup, or a shell's background
    ]
    stopped_by = 0
    said = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped_by
        stopped_by = number
        for each in numbers:
            signal.signal(each, stop_at_once)
        raise _Stop

    def stop_at_once(number: int, frame: object) -> None:
        if not said:
            os.write(2, f"error: {_INTERRUPTED}\n".encode())
            if as_json:
                os.write(1, json.dumps(_document("interrupted", _INTERRUPTED)).encode() + b"\n")
        os._exit(128 + stopped_by)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except BaseException:  # of the signal, or of what it broke
        if not stopped_by:
            raise
        said = True
        _say("interrupted", _INTERRUPTED, as_json)
        atexit._run_exitfuncs()
        os._exit(128 + stopped_by)  # to take torch down as well would need another second
    finally:
        if not stopped_by:
            for number, handler in before.items():
                signal.signal(number, handler)


def _document(kind: str, message: str, details: Sequence[str] = ()) -> dict[str, Any]:
    error: dict[str, Any] = {"kind": kind, "message": _printable(message)}
    return {"error": {**error, "details": list(details)} if details else error}


def _printable(message: str) -> str:
    """Names of files may hold bytes that are no text; messages of others, colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message)
    return plain.encode("utf-8", "backslashreplace").decode()


def _fail(kind: str, message: str, code: int, as_json: bool) -> NoReturn:
    _say(kind, message, as_json)
    sys.exit(code)


def _say(kind: str, message: str, as_json: bool, details: Sequence[str] = ()) -> None:
    if as_json:
        print_json(_document(kind, message, details))
    typer.echo(f"error: {_printable(message)}", err=True)
    for line in details[:MAX_DETAILS]:
        typer.echo(f"  {line}", err=True)
    if len(details) > MAX_DETAILS:
        typer.echo(f"  and {len(details) - MAX_DETAILS:,} more: --json lists all", err=True)
