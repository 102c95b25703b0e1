"""A real ssh server on this machine with keys of its own, and a slow way to it."""

from __future__ import annotations

import getpass
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path


class SshServer:
    """An sshd on a free port, and an ``ssh`` that finds it as the host ``board``.

    Attributes:
        bin: A folder for PATH: its ``ssh`` is the system's, with a configuration of the test's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host", "client", "stranger"):
            self.make_key(name)
        shutil.copy(folder / "client.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile {folder}/pid\n"
            "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\n"
        )
        self.trust("host")
        self.use_key("client")
        script = self.bin / "ssh"
        script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{folder}/config" "$@"\n')
        script.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def make_key(self, name: str) -> None:
        """A new pair of files."""
        path = self.folder / name
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)

    def trust(self, key: str | None) -> None:
        """Make ``key`` the one that is known of the host."""
        known = self.folder / "known_hosts"
        public = (self.folder / f"{key}.pub").read_text() if key else ""
        known.write_text(f"[127.0.0.1]:{self.port} {public}" if key else "")

    def use_key(self, name: str, port: int | None = None) -> None:
        """Let the client show this key, and knock at another port if one is given."""
        (self.folder / "config").write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {port or self.port}\n"
            f"  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder}/{name}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
            f"  HostKeyAlias [127.0.0.1]:{self.port}\n"
        )

    def start(self) -> None:
        """Start the server."""
        sshd = find_sshd()
        assert sshd
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # without it, sshd refuses to start as root
        command = [sshd, "-D", "-f", str(self.folder / "sshd_config"), "-E",
                   str(self.folder / "log")]  # fmt: skip
        self.process = subprocess.Popen(command)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server; connections go on."""
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def cut(self) -> None:
        """Cut every connection of this server, as a board that loses its power."""
        assert self.process is not None
        listed = subprocess.run(
            ["ps", "-axww", "-o", "pid=,ppid=,args="], capture_output=True, text=True
        ).stdout.splitlines()
        rows = [line.split(None, 2) for line in listed]
        family = {self.process.pid}
        for _ in rows:
            family |= {int(pid) for pid, parent, _ in rows if int(parent) in family}
        for pid, _, args in rows:
            if int(pid) in family - {self.process.pid} and args.startswith("sshd"):
                os.kill(int(pid), signal.SIGKILL)


def find_sshd() -> str | None:
    """The server's path: it must be absolute, and is no program of users."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


class SlowWay:
    """A port that leads to another one, each byte so many seconds later, either way."""

    def __init__(self, to: int, seconds: float) -> None:
        self._to, self._seconds = to, seconds
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._socket.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            for one, other in ((near, far), (far, near)):
                late: queue.Queue[tuple[float, bytes]] = queue.Queue()
                threading.Thread(target=self._take, args=(one, late), daemon=True).start()
                threading.Thread(target=self._give, args=(late, other), daemon=True).start()

    def _take(self, source: socket.socket, late: queue.Queue[tuple[float, bytes]]) -> None:
        while True:
            content = source.recv(1 << 16)
            late.put((time.monotonic() + self._seconds, content))
            if not content:
                return

    def _give(self, late: queue.Queue[tuple[float, bytes]], to: socket.socket) -> None:
        while True:
            due, content = late.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not content:
                return to.shutdown(socket.SHUT_WR)
            to.sendall(content)
