"""A PostgreSQL server of its own for a test, from Debian's package."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from callsheet.serving import listen


def _program(name: str) -> str | None:
    """Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def free_port() -> int:
    with listen() as socket:
        port: int = socket.getsockname()[1]
    return port


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database, ``127.0.0.1:PORT/postgres``; gone with the block."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    # It refuses to run as root; Debian's package brings a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = tempfile.mkdtemp(prefix="callsheet-postgres-")
    process = None
    try:
        if as_user:
            shutil.chown(folder, "postgres")
        make = [*as_user, initdb, "-D", f"{folder}/data", "-A", "trust", "-U", "callsheet", "-N"]
        subprocess.run(make, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        port = free_port()
        settings = [
            "fsync=off",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={folder}",
            "max_connections=200",
        ]
        options = [option for setting in settings for option in ("-c", setting)]
        process = subprocess.Popen(
            [*as_user, server, "-D", f"{folder}/data", "-p", str(port), *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "ready to accept connections" in line:
                break
        else:
            raise RuntimeError("PostgreSQL did not start")
        yield f"callsheet@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.terminate()
            process.communicate()
        shutil.rmtree(folder, ignore_errors=True)
