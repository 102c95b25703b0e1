"""The ``deploynas`` command, also ``python -m deploynas``: it hears signals from the start on."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Import the command line, and run it; whoever stops it meanwhile reads one line."""

    def stop(number: int, frame: object) -> None:
        text = "interrupted before anything began"
        os.write(2, f"error: {text}\n".encode())
        if "--json" in sys.argv:
            os.write(1, f'{{"error": {{"kind": "interrupted", "message": "{text}"}}}}\n'.encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    from deploynas.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
