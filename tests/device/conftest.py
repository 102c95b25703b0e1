"""A real ssh server for the tests."""

from __future__ import annotations

import shutil

import pytest
from loopback import SshServer, find_sshd


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory):
    """The server; skipped where there is none."""
    if not (find_sshd() and shutil.which("ssh") and shutil.which("ssh-keygen")):
        pytest.skip("no OpenSSH server is here (on Debian: apt-get install openssh-server)")
    server = SshServer(tmp_path_factory.mktemp("ssh"))
    yield server
    server.stop()
