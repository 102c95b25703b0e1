"""The ``deploynas`` command. Heavy imports live inside the verbs, so that --help is fast."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer

from deploynas.cli.console import print_json
from deploynas.errors import EXIT_ERROR, DeploynasError

app = typer.Typer(
    name="deploynas",
    help="Hardware-aware architecture search that deploys what it finds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
# typer brings its own click since 0.2x: take the class from where it surely comes from
_ClickException: Any = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)
VERBS = (
    "spaces", "devices", "profile", "train", "search", "retrain", "export", "check", "inspect",
    "compare", "demo",
)  # fmt: skip
for verb in VERBS:
    import_module(f"deploynas.cli.{verb}").register(app)


def main() -> None:
    """Run; a :class:`DeploynasError` becomes one line and its exit code."""
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except DeploynasError as error:
        _fail(error.kind, str(error), error.exit_code, as_json)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "deploynas":
            raise
        message = f"this needs the package {error.name} (pip install 'deploynas[search]')"
        _fail("missing-dependency", message, EXIT_ERROR, as_json)
    except OSError as error:  # a full disk, mostly
        where = f" {error.filename}" if error.filename else ""
        _fail("system", f"cannot write{where}: {error.strerror}", EXIT_ERROR, as_json)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", "interrupted; what was measured is kept", 130, as_json)
    except _ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def _fail(kind: str, message: str, code: int, as_json: bool) -> None:
    if as_json:
        print_json({"error": {"kind": kind, "message": message}})
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)
