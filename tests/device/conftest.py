"""A real ssh server on this machine, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest


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
        path = self.folder / name
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)

    def trust(self, key: str | None) -> None:
        """Make ``key`` the one that is known of the host."""
        known = self.folder / "known_hosts"
        public = (self.folder / f"{key}.pub").read_text() if key else ""
        known.write_text(f"[127.0.0.1]:{self.port} {public}" if key else "")

    def use_key(self, name: str) -> None:
        """Let the client show this key."""
        (self.folder / "config").write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder}/{name}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        )

    def start(self) -> None:
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
        """Cut every connection, as a board that loses its power."""
        pattern = f"sshd.*(@notty|\\[priv\\]|{self.folder})"
        subprocess.run(["pkill", "-9", "-f", pattern], check=False)


def find_sshd() -> str | None:
    """The server's path: it must be absolute, and is no program of users."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory):
    """The server; skipped where there is none."""
    if not (find_sshd() and shutil.which("ssh") and shutil.which("ssh-keygen")):
        pytest.skip("no OpenSSH server is here (on Debian: apt-get install openssh-server)")
    server = SshServer(tmp_path_factory.mktemp("ssh"))
    yield server
    server.stop()
