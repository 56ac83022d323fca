"""Installs a lock file and this project into .venv; called by scripts/setup, with nothing but the standard library.

What was installed is remembered in .venv as a hash, so that a second call costs no time, and an
exclusive lock keeps two calls at once from writing the same environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"


def fingerprint(lock: Path) -> str:
    """A hash of all that decides what is installed: the lock file, the project file, the place and the Python."""
    text = lock.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()
    return hashlib.sha256(text).hexdigest()


def installed(lock: Path, wanted: str) -> bool:
    """Whether ``lock``, or the development lock, which holds all of it, is what .venv has."""
    stamps = [VENV / f"installed-{lock.name}", VENV / "installed-requirements-dev.lock"]
    full = fingerprint(ROOT / "requirements-dev.lock")
    return any(s.is_file() and s.read_text() in (wanted, full) for s in stamps)


def install(lock: Path) -> None:
    python = VENV / "bin" / "python"
    if not python.exists():
        shutil.rmtree(VENV, ignore_errors=True)
        venv.create(VENV, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-qq"]
    # The lock file is complete. Left to resolve, pip looks at newer releases of what is asked for with extras, and
    # gives up because they are not in it: the day one comes out, nobody could install.
    subprocess.run([*pip, "--require-hashes", "--no-deps", "-r", str(lock)], check=True)
    # The build backend is in the lock file, so this step needs no index.
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-build-isolation", "-e", str(ROOT)], check=True)


def main() -> int:
    lock = ROOT / sys.argv[1]
    wanted = fingerprint(lock)
    with (ROOT / ".setup.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if installed(lock, wanted):
            return 0
        started = time.monotonic()
        print(f"Setting up .venv from {lock.name} (once; a minute or two) …", flush=True)
        stamp = VENV / f"installed-{lock.name}"
        stamp.unlink(missing_ok=True)
        try:
            install(lock)
        except subprocess.CalledProcessError as error:
            print(
                f"Setting up failed: {' '.join(error.cmd[1:6])} … ended with {error.returncode}",
                file=sys.stderr,
            )
            return 1
        stamp.write_text(wanted)
        print(f"Set up in {time.monotonic() - started:.0f} s.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
