"""What loads the models of a rented box, and lets its lease be renewed from outside. `onstart.sh` fetches and starts it.

    CALLSHEET_MODELS_URL=https://… CALLSHEET_MODELS_ROOT=/workspace/ComfyUI/models python3 agent.py

It runs on the box with whatever Python the image has (3.10 or later), so it needs nothing but that. Its settings are
environment variables, which `callsheet/onstart.py` puts there:

    CALLSHEET_HOME            its folder; `onstart.sh` tells what lies there
    CALLSHEET_MODELS_URL      the manifest: {"files": [{"path": "unet/x.gguf", "url": "…", "sha256": "…", "bytes": 123}]}
    CALLSHEET_MODELS_ROOT     where the paths of the manifest begin
    CALLSHEET_TOUCH_PORT      where it listens, on every address; 0 or nothing: nowhere
    CALLSHEET_TOKEN           who asks must know it
    CALLSHEET_ENDS            when the box goes, in seconds of the epoch
    CALLSHEET_BACKOFF         seconds to wait after each failed try in turn, such as "1 2 4"; one try more than these

``$CALLSHEET_HOME/state`` is ``downloading N of M``, ``ready``, or ``failed: …``. With the token, ``GET /state`` tells the
same with the free disk and the age of the lease, and ``POST /touch`` renews the lease.

Addresses are signed, so whoever reads one can use it: none is ever written down, and of every message what follows a
question mark is cut off.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import http.client
import json
import os
import queue
import re
import shutil
import signal
import socketserver
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

#: Files that are loaded at once: one connection to a bucket seldom fills a data centre's line.
AT_ONCE = 4
#: Seconds without a byte after which a connection is given up, and the rest asked for again.
STALLED_SECONDS = 30.0
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0)
CHUNK_BYTES = 2**20
#: A connection that brought so much was worth it: tries are counted from there again.
PROGRESS_BYTES = 64 * 2**20
LARGEST_MANIFEST_BYTES = 10 * 2**20
#: Who asks may take so long, and so many may ask at once: the port is open to everybody.
ASKING_SECONDS, ASKING_AT_ONCE = 10.0, 64
LARGEST_BODY_BYTES = 2**16
#: Answers that will be the same next time.
_FINAL = (400, 401, 403, 404, 410)
#: What a write says when there is no room: full, over a quota, over the largest file that is allowed.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Failed(Exception):
    """It cannot be done, and trying again does not help."""


class TryAgain(Exception):
    """It was not done this time."""


class Wrong(TryAgain):
    """What was loaded is another file than it should be. It is deleted."""


def redacted(text: str) -> str:
    """A message without what signs an address."""
    return re.sub(r"\?[^\s'\"<>]*", "?…", " ".join(text.split()))


def log(text: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), redacted(text), flush=True)


def write(path: Path, text: str) -> None:
    """Replaces a file as a whole."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text, "utf-8")
    draft.replace(path)


# --- what is where -------------------------------------------------------------------------------


class Home:
    """The folder that this agent shares with the dead-man's switch of `onstart.sh`."""

    def __init__(self, folder: Path, ends: str) -> None:
        self.folder = folder
        self._told = ends
        self._state = "starting"
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        return self._state

    def tell(self, state: str) -> None:
        """Writes a state down. A failure stays what it is."""
        with self._lock:
            if self._state.startswith("failed"):
                return
            self._state = redacted(state)
            log(self._state)
            try:
                write(self.folder / "state", f"{self._state}\n")
            except OSError as error:
                log(f"the state could not be written: {error.strerror}")

    def touch(self) -> bool:
        """Renews the lease. False where that saves the box no more: its end has come, or it is being given back."""
        if (self.folder / "going").exists() or time.time() >= self._ends():
            return False
        (self.folder / "lease").touch()
        return True

    def lease_age(self) -> float | None:
        """Seconds since the lease was renewed."""
        try:
            return round(time.time() - (self.folder / "lease").stat().st_mtime, 1)
        except OSError:
            return None

    def _ends(self) -> float:
        """The smaller of what is told and what was told first, in seconds of the epoch."""
        known = [self._told]
        with suppress(OSError, ValueError):  # the switch has not written it yet
            known.append((self.folder / "ends").read_text())
        return min((float(text) for text in known if re.fullmatch(r"\s*\d+\s*", text)), default=0.0)


@dataclass(frozen=True)
class File:
    """A file of the manifest. ``url`` is signed."""

    path: str
    url: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, row: Any, root: Path) -> File:
        """Reads one. Raises Failed where it names no file below ``root``."""
        try:
            file = cls(str(row["path"]), str(row["url"]), str(row["sha256"]).lower(), int(row["bytes"]))
        except (KeyError, TypeError, ValueError):
            raise Failed("the manifest has a file without path, url, sha256 or bytes") from None
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256) or file.bytes < 0:
            raise Failed(f"the manifest has no size and sha256 of {file.path}")
        if not is_address(file.url):
            raise Failed(f"the manifest has no http address of {file.path}")
        if (
            "\0" in file.path
            or ".." in PurePosixPath(file.path).parts
            or root not in (root / file.path).resolve().parents
        ):
            raise Failed(f"the manifest has {file.path!r}, which is not below {root}")
        return file


def is_address(url: str) -> bool:
    return re.fullmatch(r"https?://[!-~]+", url) is not None


class Verified:
    """Files whose sha256 was right, by size and time, so that a start does not read 20 GB again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            known = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}

    def has(self, path: Path, sha256: str) -> bool:
        """Whether the file is there and right, as far as it was read before."""
        try:
            return bool(self._known.get(str(path)) == [*_looks(path), sha256])
        except OSError:
            return False

    def add(self, path: Path, sha256: str) -> None:
        with self._lock:
            self._known[str(path)] = [*_looks(path), sha256]
            try:
                write(self._path, json.dumps(self._known, indent=1))
            except OSError as error:
                log(f"what was verified could not be written down: {error.strerror}")


def _looks(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes; 0 where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# --- loading -------------------------------------------------------------------------------------


def opened(url: str, start: int = 0) -> http.client.HTTPResponse:
    """An answer to a GET, from the byte ``start`` on where the server can do that.

    Raises:
        Failed: it will never be given.
        TryAgain: not this time. Neither names the address.
    """
    headers = {"User-Agent": "callsheet-agent", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        # Whether it is http was looked at before.
        answer: http.client.HTTPResponse = urllib.request.urlopen(  # noqa: S310
            urllib.request.Request(url, headers=headers),  # noqa: S310
            timeout=STALLED_SECONDS,
        )
    except urllib.error.HTTPError as error:
        error.close()
        kind = Failed if error.code in _FINAL else TryAgain
        raise kind(f"the server answered {error.code}") from None
    except urllib.error.URLError as error:
        raise TryAgain(f"no connection: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise TryAgain(f"no answer: {type(error).__name__}") from None
    return answer


class Loader:
    """Brings the files of a manifest below ``root``."""

    def __init__(self, home: Home, root: Path, backoff: tuple[float, ...] = BACKOFF_SECONDS) -> None:
        self._home, self._root, self._backoff = home, root.resolve(), backoff
        self._verified = Verified(home.folder / "verified.json")
        self._lock = threading.Lock()
        self._done = 0
        self._failed = threading.Event()

    def load(self, manifest_url: str) -> None:
        """Loads all that is missing, and tells how far it is; comes back when all is there.

        Raises:
            Failed: it cannot be done.
        """
        files = self._files(manifest_url)
        self._home.tell(f"downloading 0 of {len(files)}")
        missing = [file for file in files if not self._is_there(file)]
        self._check_room(missing)
        self._done = len(files) - len(missing)
        if missing:
            self._home.tell(f"downloading {self._done} of {len(files)}")
        work: queue.SimpleQueue[File] = queue.SimpleQueue()
        for file in sorted(missing, key=lambda file: -file.bytes):
            work.put(file)
        failures: list[Failed] = []
        # Daemons: a signal ends them with the process, and what they have loaded is gone on with at the next start.
        workers = [
            threading.Thread(target=self._work, args=(work, failures, len(files)), daemon=True)
            for _ in range(min(AT_ONCE, len(missing)))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failures:
            raise failures[0]

    def _files(self, url: str) -> list[File]:
        if not is_address(url):
            raise Failed("the manifest has no http address")
        for pause in (*self._backoff, None):
            try:
                with opened(url) as answer:
                    content = answer.read(LARGEST_MANIFEST_BYTES)
                rows = json.loads(content)["files"]
                break
            except (TryAgain, OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                # ValueError: half of it, or a gateway's page.
                said = str(error) if isinstance(error, TryAgain) else f"no manifest ({type(error).__name__})"
                log(f"manifest: {said}")
            except Failed as failure:
                raise Failed(f"manifest: {failure}") from None
            if pause is None:
                raise Failed(f"manifest: {said}")
            time.sleep(pause)
        if not isinstance(rows, list):
            raise Failed("the manifest has no list of files")
        files = [File.of(row, self._root) for row in rows]
        if len({self._root / file.path for file in files}) < len(files):
            raise Failed("the manifest has a path twice")
        return files

    def _is_there(self, file: File) -> bool:
        path = self._root / file.path
        if self._verified.has(path, file.sha256):
            return True
        if not path.is_file() or size_of(path) != file.bytes or sha256_of(path) != file.sha256:
            return False
        self._verified.add(path, file.sha256)
        return True

    def _check_room(self, missing: list[File]) -> None:
        need = sum(max(0, file.bytes - size_of(_part(self._root / file.path))) for file in missing)
        self._root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._root).free
        if need > free:
            raise Failed(
                f"the disk has {free / 1e9:.1f} GB free, and the models need {need / 1e9:.1f} GB more"
            )

    def _work(self, work: queue.SimpleQueue[File], failures: list[Failed], of: int) -> None:
        while not self._failed.is_set():
            try:
                file = work.get_nowait()
            except queue.Empty:
                return
            try:
                self._load(file)
            except Exception as error:  # whatever it is, a thread that ends silently would look like success
                said = str(error) if isinstance(error, Failed) else _said(error)
                failures.append(Failed(f"{file.path}: {said}"))
                self._failed.set()
                return
            with self._lock:
                self._done += 1
                self._home.tell(f"downloading {self._done} of {of}")

    def _load(self, file: File) -> None:
        """Loads one file and puts it in place. Raises Failed."""
        path = self._root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        cut = wrong = 0
        while True:
            had = size_of(part)
            try:
                self._fetch(file, part)
                self._check(file, part)
                break
            except Wrong as fault:
                part.unlink()
                said, wrong = str(fault), wrong + 1
            except TryAgain as fault:
                said, cut = str(fault), 1 if size_of(part) - had >= PROGRESS_BYTES else cut + 1
            log(f"{file.path}: {said}")
            tries = max(cut, wrong)
            if tries > len(self._backoff):
                raise Failed(said)
            time.sleep(self._backoff[tries - 1])
        part.replace(path)
        self._verified.add(path, file.sha256)

    def _fetch(self, file: File, part: Path) -> None:
        """Appends what a part lacks. It may lack some afterwards, too."""
        start = size_of(part)
        if start >= file.bytes > 0:
            return
        with opened(file.url, start) as answer:
            # 200: it sends all of it again.
            is_rest = answer.status == 206
            with part.open("ab" if is_rest else "wb") as out:
                left = file.bytes - (start if is_rest else 0)
                try:
                    # One byte more than there should be shows that it is another file.
                    while left >= 0 and (chunk := answer.read(min(CHUNK_BYTES, left + 1))):
                        if self._failed.is_set():
                            raise Failed("given up, as another file failed")
                        out.write(chunk)
                        left -= len(chunk)
                except http.client.HTTPException as error:
                    raise TryAgain(f"cut off: {type(error).__name__}") from None
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        raise
                    raise TryAgain(f"cut off: {type(error).__name__}") from None
                out.flush()
                # Before it has its name: after a power cut a name may be there whose content is not.
                os.fsync(out.fileno())

    def _check(self, file: File, part: Path) -> None:
        """Raises TryAgain where a part is not the whole file, Wrong where it is another."""
        found = size_of(part)
        if found < file.bytes:
            raise TryAgain(f"cut off after {found:,} of {file.bytes:,} bytes")
        if found > file.bytes:
            raise Wrong(f"found more than the {file.bytes:,} bytes that it should have")
        if (sha256 := sha256_of(part)) != file.sha256:
            raise Wrong(f"found the sha256 {sha256[:12]}…, expected {file.sha256[:12]}…")


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _said(error: Exception) -> str:
    """What is wrong, for a state."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"the disk is full ({error.strerror})"
    return redacted(f"{type(error).__name__}: {error}")


# --- being asked ---------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers ``POST /touch`` and ``GET /state`` to who knows the token. Raises OSError where the port is taken."""

    daemon_threads = True

    def __init__(self, port: int, home: Home, token: str) -> None:
        self.home = home
        self.expected = f"Bearer {token}".encode()
        # Asked from outside, through a port of the container.
        super().__init__(("0.0.0.0", port), Handler)  # noqa: S104

    def server_bind(self) -> None:
        """Binds, and asks no name server for the name of this machine, as its base does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "box", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if threading.active_count() > ASKING_AT_ONCE:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says that one went wrong, and nothing of what was asked."""
        log(f"a request failed: {type(sys.exc_info()[1]).__name__}")

    def told(self) -> dict[str, Any]:
        try:
            free = round(shutil.disk_usage(self.home.folder).free / 1e9, 2)
        except OSError:
            free = None
        return {"state": self.home.state, "free_gb": free, "lease_age": self.home.lease_age()}


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = ASKING_SECONDS
    server_version, sys_version = "callsheet", ""

    def do_GET(self) -> None:
        if self.path != "/state":
            self._answer(404, {"error": "there is no such path"})
        elif self._is_known():
            self._answer(200, self.server.told())

    def do_POST(self) -> None:
        if self.path != "/touch":
            self._answer(404, {"error": "there is no such path"})
        elif self._is_known():
            # A body that is not read makes the connection end with a reset, and the answer may be lost.
            length = self.headers.get("Content-Length", "")
            self.rfile.read(min(int(length), LARGEST_BODY_BYTES) if length.isdecimal() else 0)
            if self.server.home.touch():
                self._answer(200, self.server.told())
            else:
                self._answer(409, {"error": "the end of this box has come"})

    def _nothing(self) -> None:
        self._answer(404, {"error": "there is no such path"})

    do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _nothing

    def _is_known(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if hmac.compare_digest(given, self.server.expected):
            return True
        self._answer(401, {"error": "wrong token"})
        return False

    def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: a line for every renewal tells nobody anything."""


# --- the whole -----------------------------------------------------------------------------------


def load(home: Home, root: Path, settings: Mapping[str, str]) -> None:
    """Loads the models and tells how it went, whatever happens."""
    backoff = tuple(float(text) for text in settings.get("CALLSHEET_BACKOFF", "").split()) or BACKOFF_SECONDS
    url = settings.get("CALLSHEET_MODELS_URL", "")
    try:
        if url:
            Loader(home, root, backoff).load(url)
        home.tell("ready")
    except Failed as failure:
        home.tell(f"failed: {failure}")
    except Exception as error:
        home.tell(f"failed: {_said(error)}")


def main(settings: Mapping[str, str]) -> int:
    """Runs until SIGTERM; with nowhere to listen, until the models are there or cannot be loaded."""
    # Before there are threads, which inherit it: the signal is for who waits for it below.
    awaited = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    home = Home(
        Path(settings.get("CALLSHEET_HOME") or "/workspace/.callsheet"), settings.get("CALLSHEET_ENDS", "")
    )
    home.folder.mkdir(parents=True, exist_ok=True)
    root = Path(settings.get("CALLSHEET_MODELS_ROOT") or home.folder / "models")
    port, token = int(settings.get("CALLSHEET_TOUCH_PORT") or 0), settings.get("CALLSHEET_TOKEN", "")
    if port and not token:
        home.tell("failed: there is no token, so nobody can renew the lease")
        port = 0
    if port:
        try:
            server = Server(port, home, token)
        except OSError as error:
            home.tell(f"failed: port {port}: {error.strerror}")
            return 0
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def work() -> None:
        load(home, root, settings)
        if not port:
            os.kill(os.getpid(), signal.SIGTERM)  # nobody will ask any more

    threading.Thread(target=work, daemon=True).start()
    signal.sigwait(awaited)
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
