"""What a rented box runs when it starts, in real shells and on real sockets, with a stand-in for vast.ai.

The stand-in has a clock of its own; the dead-man's switch looks at the real one.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from callsheet.errors import BadInput
from callsheet.onstart import HostSetup, agent_content, agent_sha256, onstart_of
from tests.conftest import ROOT
from tests.fakes.background import BackgroundServer
from tests.fakes.vast import Fault as VastFault
from tests.fakes.vast import Vast

SCRIPT = ROOT / "deployments/hosts/onstart.sh"
AGENT = ROOT / "deployments/hosts/agent.py"
TOKEN = "token-of-the-test"
SIGNED = "?X-Amz-Credential=c0ffee&X-Amz-Signature=5ec4e7"
BUSY = '{"queue_running": [[0, "id", {}]], "queue_pending": []}'
IDLE = '{"queue_running": [], "queue_pending": []}'

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="boxes run Linux")

Fault = Literal["cut", "hang", "whole", "other", "403", "502", "reset"]


class Files(BackgroundServer):
    """A bucket: contents by path, with Range, and faults.

    Attributes:
        before: what is done before a path's answer is given.
        requests: paths, and the first byte that was asked for where one was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.contents: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.requests: list[tuple[str, str]] = []

    def put(self, path: str, content: bytes, *faults: Fault) -> str:
        """Puts a file there, whose next requests go wrong. Returns its signed address."""
        self.contents[path], self.faults[path] = content, list(faults)
        return f"{self.url}{path}{SIGNED}"

    def asked(self, path: str) -> list[str]:
        """From which byte on a path was asked for, each time."""
        return [wanted for asked, wanted in self.requests if asked == path]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = urlsplit(head.split(" ")[1]).path
            found = re.search(r"^range: bytes=(\d+)-", head, re.IGNORECASE | re.MULTILINE)
            self.requests.append((path, found[1] if found else ""))
            self.before.get(path, lambda: None)()
            faults = self.faults.get(path)
            fault = faults.pop(0) if faults else None
            content = self.contents.get(path)
            start = int(found[1]) if found and fault != "whole" else 0
            if fault == "reset":
                writer.transport.abort()
            elif content is None or fault in ("403", "502"):
                writer.write(f"HTTP/1.1 {fault or 404} X\r\nContent-Length: 0\r\n\r\n".encode())
            elif start and start >= len(content):
                writer.write(b"HTTP/1.1 416 X\r\nContent-Length: 0\r\n\r\n")
            else:
                whole, content = len(content), content[start:]
                status = f"206 X\r\nContent-Range: bytes {start}-{whole - 1}/{whole}" if start else "200 X"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode())
                content = content[::-1] if fault == "other" else content
                writer.write(content[: len(content) // 2] if fault in ("cut", "hang") else content)
                await writer.drain()
                if fault == "hang":
                    await asyncio.Event().wait()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def until(condition: Callable[[], Any], seconds: float = 15) -> Any:
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return result


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("", 0))
        port: int = held.getsockname()[1]
        return port


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it is gone, or not ours
        return b""


def arguments(pid: int) -> list[str]:
    return proc(pid, "cmdline").decode(errors="replace").split("\0")[:-1]


def session(pid: int) -> int:
    """Number of its session; -1 where it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


class Box:
    """A rented box: a folder, the processes that run for it, and what vast.ai knows of it."""

    def __init__(self, folder: Path, vast: Vast, *, shell: str, sh: str) -> None:
        """``shell`` runs the onstart; ``sh`` is what the box has under that name."""
        self.folder, self.vast, self.shell = folder, vast, shell
        self.home = folder / "home"
        self.models = folder / "models"
        self.rented = vast.made(vast.offer(), {})
        self.port = free_port()
        self.bin = folder / "bin"
        self.bin.mkdir()
        # The box's own python3 and sh; pyenv's stand-in for python3 takes long to start.
        (self.bin / "python3").symlink_to(sys.executable)
        (self.bin / "sh").symlink_to(shutil.which(sh) or sh)
        self.environ = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "CALLSHEET_HOME": str(self.home),
            "CALLSHEET_TICK": "0.1",
            "CALLSHEET_BACKOFF": "0 0.05 0.1",
            "CONTAINER_ID": str(self.rented.id),
            "CONTAINER_API_KEY": self.rented.key,
        }

    def setup(self, **more: Any) -> HostSetup:
        """A box that lives for as long as a test takes, but for what is said."""
        standard: dict[str, Any] = {
            "ends": time.time() + 1000,
            "lease_seconds": 1000,
            "token": SecretStr(TOKEN),
            "start": "",
            "queues": (),
            "vast_url": self.vast.url,
        }
        return HostSetup(**standard | more)

    def start(self, environ: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        """Starts the container: runs the onstart to its end. What it leaves behind runs on."""
        onstart = self.folder / "onstart"
        onstart.write_text(onstart_of(self.setup(**more)))
        # Through a pipe: it comes to its end when nothing that is left behind holds it any more.
        return subprocess.run(
            [self.shell, str(onstart)],
            env=self.environ | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            timeout=20,
        )

    def agent(self, before: str = "", **more: str) -> subprocess.Popen[bytes]:
        """Starts the agent alone, with these settings, after a command of the shell."""
        self.home.mkdir(exist_ok=True)
        (self.home / "lease").touch()
        with (self.home / "agent.log").open("a") as out:
            return subprocess.Popen(
                ["bash", "-c", f'{before} exec python3 "$0"', str(AGENT)],
                env=self.environ
                | {
                    "CALLSHEET_MODELS_ROOT": str(self.models),
                    "CALLSHEET_TOKEN": TOKEN,
                    "CALLSHEET_ENDS": str(int(time.time()) + 1000),
                }
                | more,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def load(self, manifest: str, *, before: str = "") -> str:
        """Lets the agent load what a manifest names, and returns the state that it ends with."""
        self.agent(before, CALLSHEET_MODELS_URL=manifest).wait(20)
        return self.state

    @property
    def state(self) -> str:
        return text_of(self.home / "state").strip()

    def log(self, name: str) -> str:
        return text_of(self.home / f"{name}.log")

    @property
    def destroys(self) -> int:
        return len(self.vast.asked("destroy"))

    @property
    def is_destroyed(self) -> bool:
        return self.rented.destroyed is not None

    def age_lease(self, seconds: float) -> float:
        """Makes the lease so old. Returns when it was renewed, then."""
        then = float(int(time.time() - seconds))
        os.utime(self.home / "lease", (then, then))
        return then

    @property
    def renewed(self) -> float:
        return (self.home / "lease").stat().st_mtime

    def ask(self, method: str, path: str, token: str = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=5)

    def listens(self) -> bool:
        try:
            return self.ask("GET", "/state").status_code == 200
        except httpx.TransportError:
            return False

    def pids(self, last: str = "") -> set[int]:
        """The box's processes; those whose last argument ends so."""
        mark = f"CALLSHEET_HOME={self.home}".encode()
        found = {
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and mark in proc(int(folder.name), "environ").split(b"\0")
        }
        return {pid for pid in found if (arguments(pid) or [""])[-1].endswith(last)}

    def switches(self) -> set[int]:
        """The switches, without what they have just forked and what is no other program yet."""
        return {pid for pid in self.pids("switch") if session(pid) == pid}

    def kill(self) -> None:
        """Ends every process, as the end of a container does."""
        # Looked twice: what becomes another program at that moment has no environment.
        while pids := self.pids() or self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in pids:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


@pytest.fixture
def vast() -> Iterator[Vast]:
    with Vast() as vast:
        yield vast


@pytest.fixture
def files() -> Iterator[Files]:
    with Files() as files:
        yield files


@pytest.fixture
def box(tmp_path: Path, vast: Vast) -> Iterator[Box]:
    """A box as most are: bash runs the onstart, and ``sh`` is whatever this machine has."""
    box = Box(tmp_path, vast, shell="bash", sh="sh")
    yield box
    box.kill()


@pytest.fixture(
    params=[
        pytest.param(("bash", "dash"), id="sh is dash"),
        pytest.param(("dash", "bash"), id="sh is bash", marks=pytest.mark.slow),
    ]
)
def any_box(tmp_path: Path, vast: Vast, request: pytest.FixtureRequest) -> Iterator[Box]:
    """A box in each of the shells that images have as ``sh``."""
    shell, sh = request.param
    if not shutil.which("dash"):
        pytest.skip("dash is not installed")
    box = Box(tmp_path, vast, shell=shell, sh=sh)
    yield box
    box.kill()


def manifest(files: Files, **contents: tuple[bytes, tuple[Fault, ...]]) -> str:
    """The address of a manifest of these files, whose names have ``__`` for a slash."""
    rows = []
    for name, (content, faults) in contents.items():
        url = files.put(f"/m/{name}", content, *faults)
        rows.append(row(name.replace("__", "/") + ".bin", url, content))
    return files.put("/manifest", json.dumps({"files": rows}).encode())


def row(path: str, url: str, content: bytes) -> dict[str, Any]:
    return {"path": path, "url": url, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


# --- the dead-man's switch -----------------------------------------------------------------------


def test_a_box_gives_itself_back_when_its_end_has_come(any_box: Box) -> None:
    any_box.start(ends=time.time() + 2)
    assert not any_box.destroys
    until(lambda: any_box.is_destroyed)
    (request, *_) = any_box.vast.asked("destroy")
    assert request.key == any_box.rented.key
    assert request.body == {}
    assert request.path == f"/api/v0/instances/{any_box.rented.id}/"


def test_a_box_gives_itself_back_when_nobody_renewed_its_lease(any_box: Box) -> None:
    any_box.start()
    until(lambda: (any_box.home / "ends").exists())
    any_box.age_lease(900)
    time.sleep(0.3)  # two looks at it
    assert not any_box.destroys
    any_box.age_lease(1001)
    until(lambda: any_box.is_destroyed)


@pytest.mark.parametrize(
    ("busy", "idle"),
    [
        (BUSY, IDLE),
        (
            '{"queue_running": [],\n "queue_pending": [ [1] ]}',
            '{"queue_pending": [\n],\n"queue_running": [ ]}',
        ),
    ],
    ids=["as ComfyUI writes it", "with other blanks"],
)
def test_work_in_a_queue_renews_the_lease_until_the_queue_is_empty(
    any_box: Box, files: Files, busy: str, idle: str
) -> None:
    files.put("/idle", IDLE.encode())
    files.put("/queue", busy.encode())
    # Each time that the queue is asked for, the lease is too old already.
    files.before["/queue"] = lambda: any_box.age_lease(5000)
    any_box.start(queues=(f"{files.url}/nothing", f"{files.url}/idle", f"{files.url}/queue"))
    until(lambda: len(files.asked("/queue")) > 4)
    assert not any_box.destroys
    files.put("/queue", idle.encode())
    until(lambda: any_box.is_destroyed)


@pytest.mark.slow
def test_work_in_a_queue_does_not_put_the_end_off(box: Box, files: Files) -> None:
    files.put("/queue", BUSY.encode())
    box.start(ends=time.time() - 5, queues=(f"{files.url}/queue",))
    until(lambda: box.is_destroyed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        ("not taken on", "not taken on", "502", "resets", "500", "429 text", "half", "html"),
        ("committed, then resets",),
    ],
    ids=["refused", "unclear"],
)
def test_a_box_asks_to_be_destroyed_until_it_is_gone(any_box: Box, faults: tuple[VastFault, ...]) -> None:
    for fault in faults:
        any_box.vast.fail("destroy", fault)
    any_box.start(ends=time.time() - 5)
    until(lambda: any_box.is_destroyed)
    # It is not told that it is gone, but by being gone.
    until(lambda: any_box.destroys > len(faults) + 3)
    taken_on = any_box.log("switch").count("taken on")
    assert taken_on == (0 if "committed, then resets" in faults else 1)


@pytest.mark.slow
def test_what_is_being_given_back_is_not_kept_by_a_lease_renewed_too_late(box: Box) -> None:
    for _ in range(8):
        box.vast.fail("destroy", "not taken on")
    box.start()
    until(lambda: (box.home / "ends").exists())
    box.age_lease(1001)
    until(lambda: box.destroys)
    box.age_lease(0)
    until(lambda: box.is_destroyed)


@pytest.mark.slow
def test_a_reboot_does_not_put_the_end_off(any_box: Box) -> None:
    ends = int(time.time()) + 2
    any_box.start(ends=ends)
    until(lambda: text_of(any_box.home / "ends"))
    any_box.kill()
    any_box.start(ends=ends + 5000)
    until(lambda: any_box.is_destroyed)
    assert text_of(any_box.home / "ends") == f"{ends}\n"


@pytest.mark.slow
def test_a_reboot_may_bring_the_end_nearer(box: Box) -> None:
    box.start()
    until(lambda: text_of(box.home / "ends"))
    box.kill()
    box.start(ends=time.time() - 5)
    until(lambda: box.is_destroyed)


@pytest.mark.slow
def test_a_reboot_does_not_renew_the_lease(any_box: Box, files: Files) -> None:
    files.put("/queue", IDLE.encode())
    queues = (f"{files.url}/queue",)
    any_box.start(queues=queues)
    until(lambda: files.asked("/queue"))
    any_box.kill()
    aged = any_box.age_lease(900)
    asked = len(files.asked("/queue"))
    any_box.start(queues=queues)
    until(lambda: len(files.asked("/queue")) > asked + 1)
    assert any_box.renewed == aged


@pytest.mark.slow
def test_a_second_start_starts_no_second_switch_and_no_second_agent(any_box: Box, files: Files) -> None:
    more = {"agent_url": files.put("/agent", agent_content()), "agent_sha256": agent_sha256()}
    environ = {"CALLSHEET_TICK": "30"}  # its processes stay the same meanwhile
    any_box.start(environ, touch_port=any_box.port, **more)
    until(lambda: any_box.listens() and any_box.state == "ready")
    until(lambda: len(any_box.pids("30")) == 1)  # its sleep
    before = any_box.pids()
    any_box.start(environ, touch_port=any_box.port, **more)
    until(lambda: any_box.pids() == before)
    assert len(any_box.switches()) == 1
    assert any_box.state == "ready"


@pytest.mark.slow
def test_a_switch_that_was_killed_is_replaced_by_the_next_start(any_box: Box) -> None:
    environ = {"CALLSHEET_TICK": "30"}
    any_box.start(environ)
    until(lambda: any_box.pids("30"))  # its sleep, which outlives it
    (switch,) = any_box.switches()
    os.kill(switch, signal.SIGKILL)
    until(lambda: not any_box.switches())
    assert any_box.pids("30")
    any_box.age_lease(5000)
    any_box.start(environ)
    until(lambda: any_box.is_destroyed)


@pytest.mark.slow
def test_a_switch_is_not_ended_by_the_signals_that_end_other_programs(box: Box) -> None:
    box.start()
    until(lambda: box.pids("0.1"))
    (switch,) = box.switches()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(switch, number)
    box.age_lease(5000)
    until(lambda: box.is_destroyed)
    assert box.switches() == {switch}


@pytest.mark.slow
def test_a_switch_whose_sleep_is_ended_goes_on(box: Box) -> None:
    box.start({"CALLSHEET_TICK": "29"})
    (sleep,) = until(lambda: box.pids("29"))
    os.kill(sleep, signal.SIGKILL)
    until(lambda: box.pids("30"))


@pytest.mark.slow
def test_a_lease_that_somebody_deleted_is_not_one_that_ran_out(box: Box, files: Files) -> None:
    files.put("/queue", IDLE.encode())
    box.start(queues=(f"{files.url}/queue",))
    until(lambda: files.asked("/queue"))
    (box.home / "lease").unlink()
    asked = len(files.asked("/queue"))
    until(lambda: len(files.asked("/queue")) > asked + 2)
    assert not box.destroys


@pytest.mark.slow
def test_a_box_whose_folder_cannot_be_made_still_goes_at_its_end(any_box: Box) -> None:
    any_box.home.write_text("a file where the folder should be")
    any_box.start(ends=time.time() + 1)
    until(lambda: any_box.is_destroyed)


@pytest.mark.slow
def test_a_file_of_the_end_that_was_spoilt_is_not_believed(box: Box) -> None:
    box.home.mkdir()
    (box.home / "ends").write_text("")
    (box.home / "lease").touch()
    ends = int(time.time()) + 1
    box.start(ends=ends)
    until(lambda: box.is_destroyed)
    assert text_of(box.home / "ends") == f"{ends}\n"


@pytest.mark.slow
def test_the_engines_take_the_place_of_the_script_and_know_no_secret(box: Box) -> None:
    done = box.start(
        start='echo "engine $$ in $CALLSHEET_HOME: $CALLSHEET_MODELS_ROOT"; env; exit 7',
        models_root='/it\'s $(touch pwned) `touch pwned` "here"',
    )
    assert done.returncode == 7
    assert f'in {box.home}: /it\'s $(touch pwned) `touch pwned` "here"' in done.stdout
    assert TOKEN not in done.stdout
    assert not list(box.folder.rglob("pwned"))


# --- the agent as the script fetches it ----------------------------------------------------------


@pytest.mark.slow
def test_the_agent_is_fetched_through_faults_and_started(any_box: Box, files: Files) -> None:
    url = files.put("/agent", agent_content(), "502", "cut")
    any_box.start(agent_url=url, agent_sha256=agent_sha256(), touch_port=any_box.port)
    until(any_box.listens)
    assert until(lambda: any_box.state) == "ready"


@pytest.mark.slow
def test_an_agent_that_is_there_needs_no_fetching_after_a_reboot(box: Box, files: Files) -> None:
    url = files.put("/agent", agent_content())
    box.start(agent_url=url, agent_sha256=agent_sha256(), touch_port=box.port)
    until(box.listens)
    box.kill()
    files.faults["/agent"] = ["403"] * 9  # its address is too old by now
    box.start(agent_url=url, agent_sha256=agent_sha256(), touch_port=box.port)
    until(box.listens)


def test_an_agent_with_a_wrong_hash_is_never_run(any_box: Box, files: Files) -> None:
    url = files.put("/agent", b"open('ran', 'w')")
    any_box.start(agent_url=url, agent_sha256=agent_sha256())
    until(lambda: any_box.state == "failed: the agent has another sha256")
    assert len(files.asked("/agent")) == 3
    assert not list(any_box.folder.rglob("ran"))


@pytest.mark.slow
def test_the_switch_works_where_the_agent_cannot_be_fetched(box: Box, files: Files) -> None:
    box.start(agent_url=f"{files.url}/nothing", agent_sha256=agent_sha256())
    until(lambda: box.state == "failed: the agent could not be fetched")
    assert not box.destroys
    box.age_lease(1001)
    until(lambda: box.is_destroyed)


@pytest.mark.slow
def test_an_agent_that_crashes_is_told_of(box: Box, files: Files) -> None:
    crashing = b"raise SystemExit(3)"
    url = files.put("/agent", crashing)
    box.start(agent_url=url, agent_sha256=hashlib.sha256(crashing).hexdigest())
    until(lambda: box.state == "failed: the agent ended with 3")


@pytest.mark.slow
def test_a_state_of_before_a_reboot_is_not_told_as_one_of_now(box: Box) -> None:
    box.home.mkdir()
    (box.home / "state").write_text("ready\n")
    waits = {"CALLSHEET_BACKOFF": "30"}
    box.start(waits, agent_url="http://127.0.0.1:9/agent", agent_sha256=agent_sha256())
    until(lambda: box.pids("30"))
    assert not (box.home / "state").exists()


# --- being asked ---------------------------------------------------------------------------------


def test_a_touch_renews_the_lease_and_a_wrong_token_does_not(box: Box) -> None:
    box.agent(CALLSHEET_TOUCH_PORT=str(box.port))
    until(box.listens)
    aged = box.age_lease(500)
    for token in ("", "another", f"{TOKEN}x", TOKEN[:-1]):
        assert box.ask("POST", "/touch", token).status_code == 401
        assert box.ask("GET", "/state", token).status_code == 401
    assert box.renewed == aged
    told = box.ask("GET", "/state").json()
    assert told["state"] == "ready"
    assert told["free_gb"] > 0
    assert 499 < told["lease_age"] < 510
    assert box.ask("POST", "/touch").json()["lease_age"] < 10
    assert box.renewed > aged
    for method, path in (
        ("GET", "/touch"),
        ("POST", "/state"),
        ("GET", "/"),
        ("PUT", "/touch"),
        ("DELETE", "/state"),
    ):
        assert box.ask(method, path).status_code == 404


@pytest.mark.slow
def test_a_touch_of_a_box_that_goes_is_refused(box: Box) -> None:
    box.agent(CALLSHEET_TOUCH_PORT=str(box.port))
    until(box.listens)
    aged = box.age_lease(500)
    (box.home / "going").touch()
    assert box.ask("POST", "/touch").status_code == 409
    (box.home / "going").unlink()
    (box.home / "ends").write_text(f"{int(time.time()) - 1}\n")
    assert box.ask("POST", "/touch").status_code == 409
    assert box.renewed == aged


@pytest.mark.slow
def test_a_renewed_lease_keeps_a_box_and_one_that_is_not_does_not(box: Box, files: Files) -> None:
    url = files.put("/agent", agent_content())
    box.start(agent_url=url, agent_sha256=agent_sha256(), touch_port=box.port)
    until(box.listens)
    box.age_lease(995)
    assert box.ask("POST", "/touch").status_code == 200
    box_time = time.time() - box.renewed
    assert box_time < 5
    assert not box.destroys
    box.age_lease(1001)
    until(lambda: box.is_destroyed)
    until(lambda: box.ask("POST", "/touch").status_code == 409)


@pytest.mark.slow
def test_sigterm_ends_the_agent_and_its_state_stays(box: Box, files: Files) -> None:
    url = files.put("/agent", agent_content())
    box.start(agent_url=url, agent_sha256=agent_sha256(), touch_port=box.port)
    until(lambda: box.listens() and box.state == "ready")
    (agent,) = box.pids("agent.py")
    os.kill(agent, signal.SIGTERM)
    until(lambda: not box.pids("agent.py") and not box.pids("agent"))
    assert box.state == "ready"


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(box: Box) -> None:
    with socket.socket() as other:
        other.bind(("", box.port))
        other.listen()
        box.agent(CALLSHEET_TOUCH_PORT=str(box.port)).wait(20)
    assert box.state.startswith(f"failed: port {box.port}")


@pytest.mark.slow
def test_without_a_token_nobody_is_listened_to(box: Box) -> None:
    box.agent(CALLSHEET_TOUCH_PORT=str(box.port), CALLSHEET_TOKEN="").wait(20)
    assert "no token" in box.state


@pytest.mark.slow
def test_a_connection_that_says_nothing_keeps_nobody_else_waiting(box: Box) -> None:
    box.agent(CALLSHEET_TOUCH_PORT=str(box.port))
    until(box.listens)
    with socket.create_connection(("127.0.0.1", box.port)) as silent:
        silent.sendall(b"POST /touch HT")
        assert box.ask("POST", "/touch").status_code == 200


# --- loading models ------------------------------------------------------------------------------


def content_of(size: int, seed: int = 0) -> bytes:
    return (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]


def test_models_are_loaded_and_their_folders_made(box: Box, files: Files) -> None:
    contents = {f"unet__part{number}": (content_of(1000 * number, number), ()) for number in range(7)}
    assert box.load(manifest(files, vae=(b"vae", ()), **contents)) == "ready"
    assert (box.models / "vae.bin").read_bytes() == b"vae"
    for name, (content, _) in contents.items():
        assert (box.models / f"{name.replace('__', '/')}.bin").read_bytes() == content
    assert not list(box.models.rglob("*.part"))


@pytest.mark.slow
def test_a_state_says_how_many_are_there(box: Box, files: Files) -> None:
    url = manifest(files, here=(b"1", ()), quick=(b"2", ()), slow=(content_of(1000), ("hang",)))
    box.models.mkdir()
    (box.models / "here.bin").write_bytes(b"1")
    box.agent(CALLSHEET_MODELS_URL=url)
    until(lambda: box.state == "downloading 2 of 3")
    assert "downloading 3" not in box.log("agent")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "reset", "502"])
def test_what_was_cut_off_is_gone_on_with(box: Box, files: Files, fault: Fault) -> None:
    content = content_of(400_000)
    assert box.load(manifest(files, model=(content, ("cut", fault)))) == "ready"
    assert (box.models / "model.bin").read_bytes() == content
    first, *others = files.asked("/m/model")
    assert first == ""
    assert others[0] == "200000"
    assert others[-1] == ("300000" if fault == "cut" else "200000")


@pytest.mark.slow
def test_a_server_without_ranges_sends_it_all_again(box: Box, files: Files) -> None:
    content = content_of(400_000)
    assert box.load(manifest(files, model=(content, ("cut", "whole")))) == "ready"
    assert (box.models / "model.bin").read_bytes() == content
    assert files.asked("/m/model") == ["", "200000"]


@pytest.mark.slow
def test_a_reboot_goes_on_where_the_download_was(box: Box, files: Files) -> None:
    content = content_of(3_000_000)
    url = manifest(files, model=(content, ("hang",)))
    box.agent(CALLSHEET_MODELS_URL=url)
    part = box.models / "model.bin.part"
    until(lambda: part.exists() and part.stat().st_size)
    box.kill()
    had = part.stat().st_size
    assert box.load(url) == "ready"
    assert (box.models / "model.bin").read_bytes() == content
    assert files.asked("/m/model") == ["", str(had)]


@pytest.mark.slow
def test_a_part_of_another_file_is_not_built_upon(box: Box, files: Files) -> None:
    content = content_of(1000)
    url = manifest(files, longer=(content, ()), same=(content, ()), shorter=(content, ()))
    box.models.mkdir()
    (box.models / "longer.bin.part").write_bytes(b"x" * 2000)
    (box.models / "same.bin.part").write_bytes(b"x" * 1000)
    (box.models / "shorter.bin.part").write_bytes(b"x" * 500)
    assert box.load(url) == "ready"
    assert {path.read_bytes() for path in box.models.iterdir()} == {content}


def test_a_file_with_a_wrong_hash_is_loaded_again_and_never_put_in_place(box: Box, files: Files) -> None:
    content = content_of(1000)
    assert box.load(manifest(files, model=(content, ("other",)))) == "ready"
    assert (box.models / "model.bin").read_bytes() == content
    bad = manifest(files, bad=(content, ("other",) * 9))
    assert box.load(bad).startswith("failed: bad.bin: found the sha256 ")
    assert not list(box.models.glob("bad*"))
    assert len(files.asked("/m/bad")) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("bytes_", "said"), [(999, "more than"), (1001, "416")])
def test_a_file_of_another_size_is_never_put_in_place(box: Box, files: Files, bytes_: int, said: str) -> None:
    content = content_of(1000)
    wrong = row("model.bin", files.put("/m/model", content), content) | {"bytes": bytes_}
    state = box.load(files.put("/manifest", json.dumps({"files": [wrong]}).encode()))
    assert state.startswith("failed: model.bin: ")
    assert said in box.log("agent")
    assert not (box.models / "model.bin").exists()


@pytest.mark.slow
def test_what_will_not_be_given_is_asked_for_once(box: Box, files: Files) -> None:
    url = manifest(files, model=(b"1", ("403",)))
    assert box.load(url) == "failed: model.bin: the server answered 403"
    assert len(files.asked("/m/model")) == 1


@pytest.mark.slow
def test_files_that_are_there_are_not_loaded_and_not_read_again(box: Box, files: Files) -> None:
    content = content_of(5000)
    url = manifest(files, model=(content, ()), other=(content, ()))
    box.models.mkdir()
    (box.models / "model.bin").write_bytes(content)
    assert box.load(url) == "ready"
    assert not files.asked("/m/model")
    # Another content with the size and time of what was verified: who looked into it would see that.
    path = box.models / "other.bin"
    then = path.stat().st_mtime_ns
    path.write_bytes(content[::-1])
    os.utime(path, ns=(then, then))
    assert box.load(url) == "ready"
    assert path.read_bytes() == content[::-1]
    # With another time it is looked into.
    os.utime(path)
    assert box.load(url) == "ready"
    assert path.read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["../out.bin", "/out.bin", "a/../../out.bin", "a/../out.bin", "", ".", "link/out.bin", "a\0b"]
)
def test_a_path_that_leaves_the_models_is_refused(box: Box, files: Files, path: str) -> None:
    box.models.mkdir()
    (box.models / "link").symlink_to(box.folder)
    rows = [row(path, files.put("/m/out", b"1"), b"1")]
    state = box.load(files.put("/manifest", json.dumps({"files": rows}).encode()))
    assert state.startswith("failed: the manifest has ")
    assert "not below" in state
    assert not files.asked("/m/out")
    assert not list(box.folder.rglob("out.bin*"))


@pytest.mark.slow
def test_what_signs_an_address_is_cut_off_wherever_it_stands(box: Box, files: Files) -> None:
    rows = [row(f"../out.bin{SIGNED}", files.put("/m/out", b"1"), b"1")]
    state = box.load(files.put("/manifest", json.dumps({"files": rows}).encode()))
    assert "../out.bin?…" in state
    assert "X-Amz" not in state + box.log("agent")


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"<html>",
        b"[]",
        b'{"files": 3}',
        b'{"files": [{"path": "a"}]}',
        b'{"files": [{"path": "a", "url": "file:///etc/passwd", "sha256": "%s", "bytes": 1}]}' % (b"0" * 64),
        b'{"files": [{"path": "a", "url": "http://x/?secret", "sha256": "0", "bytes": 1}]}',
    ],
)
def test_a_manifest_that_is_none_is_told(box: Box, files: Files, content: bytes) -> None:
    state = box.load(files.put("/manifest", content))
    assert re.match(r"failed: (the )?manifest", state)
    assert "secret" not in state + box.log("agent")


@pytest.mark.slow
def test_a_manifest_is_asked_for_again(box: Box, files: Files) -> None:
    url = manifest(files, model=(b"1", ()))
    files.faults["/manifest"] = ["502", "reset", "cut"]
    assert box.load(url) == "ready"


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_told_before_anything_is_loaded(box: Box, files: Files) -> None:
    big = row("big.bin", files.put("/m/big", b"1"), b"1") | {"bytes": 10**18}
    state = box.load(files.put("/manifest", json.dumps({"files": [big]}).encode()))
    assert re.fullmatch(
        r"failed: the disk has [\d.]+ GB free, and the models need 1000000000\.0 GB more", state
    )
    assert not files.asked("/m/big")


@pytest.mark.slow
def test_a_disk_that_is_full_is_told(box: Box, files: Files) -> None:
    url = manifest(files, model=(content_of(300_000), ()))
    assert box.load(url, before="ulimit -f 100;").startswith("failed: model.bin: the disk is full")
    assert len(files.asked("/m/model")) == 1


@pytest.mark.slow
def test_the_agent_needs_nothing_but_python_3_10() -> None:
    tree = ast.parse(AGENT.read_text("utf-8"), feature_version=(3, 10))
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


# --- secrets -------------------------------------------------------------------------------------


def test_no_secret_is_in_a_log_a_state_or_an_argument(box: Box, files: Files) -> None:
    secrets = [TOKEN, box.rented.key, "X-Amz", "c0ffee", "5ec4e7"]
    # Every curl tells its arguments, and everything else that runs is looked at, too.
    curl = box.bin / "curl"
    curl.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >>{box.folder}/curls\nexec {shutil.which("curl")} "$@"\n'
    )
    curl.chmod(0o755)
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.update(" ".join(arguments(pid)) for pid in box.pids())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        files.put("/queue", BUSY.encode())
        contents: dict[str, Any] = {
            "good": (content_of(1000), ("cut", "502")),
            "bad": (content_of(1000), ("reset", "other", "403")),
        }
        done = box.start(
            agent_url=files.put("/agent", agent_content(), "403", "reset", "cut"),
            agent_sha256=agent_sha256(),
            models_url=manifest(files, **contents),
            models_root=str(box.models),
            touch_port=box.port,
            queues=(f"{files.url}/queue",),
            environ={"CALLSHEET_BACKOFF": "0 0.05 0.1 0.1"},
        )
        until(lambda: box.state.startswith("failed: bad.bin"))
        box.ask("POST", "/touch")
        box.ask("POST", "/touch", "wrong-token")
        box.vast.fail("destroy", "wrong key")
        (box.home / "going").touch()
        until(lambda: box.is_destroyed)
    finally:
        ended.set()
        watcher.join()
    told = {path.name: path.read_text() for path in [*box.home.iterdir(), box.folder / "curls"]}
    told["what the script said"] = done.stdout
    assert len(told["curls"].splitlines()) > 5
    assert any("agent.py" in line for line in seen)
    for secret in secrets:
        assert not [name for name, text in told.items() if secret in text]
        assert not [line for line in seen if secret in line]


# --- what vast.ai is given -----------------------------------------------------------------------


def full_setup(signature: int = 600, **more: Any) -> HostSetup:
    """A setup with everything, its addresses being so long."""
    bucket = "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com/callsheet/hosts/agent.py?X-Amz-Signature="
    url = bucket.ljust(signature, "0")
    standard: dict[str, Any] = {
        "ends": 1_800_000_000.9,
        "lease_seconds": 1800,
        "token": SecretStr("t" * 43),
        "start": "/opt/callsheet/start.sh --listen 127.0.0.1 && exec entrypoint.sh",
        "queues": ("http://127.0.0.1:18188/queue", "http://127.0.0.1:18189/queue"),
        "agent_url": url,
        "agent_sha256": agent_sha256(),
        "models_url": url,
        "models_root": "/workspace/ComfyUI/models",
        "touch_port": 8790,
    }
    return HostSetup(**standard | more)


@pytest.mark.slow
def test_an_onstart_with_everything_fits_into_what_vast_ai_takes() -> None:
    text = onstart_of(full_setup())
    assert len(text) <= 4096
    assert text.startswith("#!/bin/sh\nexport CALLSHEET_ENDS=1800000000\n")
    assert "VAST_URL=" not in text


@pytest.mark.slow
def test_an_onstart_that_is_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        BadInput, match=r"has 5,\d{3} characters, 3,\d{3} of them settings; vast.ai takes 4,096"
    ):
        onstart_of(full_setup(1500))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ends", float("nan")),
        ("ends", 0.0),
        ("lease_seconds", 0.5),
        ("lease_seconds", float("inf")),
        ("token", SecretStr("")),
        ("token", SecretStr("two words")),
        ("queues", ("127.0.0.1:18188",)),
        ("queues", ("http://127.0.0.1/a b",)),
        ("agent_url", ""),
        ("agent_url", 'https://x/"\noutput = "/etc/passwd'),
        ("agent_sha256", ""),
        ("agent_sha256", "0" * 63),
        ("models_url", "bucket/manifest.json"),
        ("models_root", "models"),
        ("touch_port", 65536),
        ("vast_url", ""),
    ],
)
def test_a_setup_with_which_a_box_would_not_work_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=name):
        full_setup(**{name: value})


@pytest.mark.slow
def test_neither_a_setup_nor_a_refusal_shows_what_is_secret() -> None:
    shown = repr(full_setup())
    assert "X-Amz" not in shown
    assert "ttt" not in shown
    with pytest.raises(BadInput) as refused:
        full_setup(models_url="bucket/m?X-Amz")
    assert "X-Amz" not in str(refused.value)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(box: Box) -> None:
    # What runs in processes of their own is text to shellcheck; here they write down what they would run.
    setsid = box.bin / "setsid"
    setsid.write_text(f'#!/bin/sh\n{{ printf "#!/bin/sh\\n"; printf "%s\\n" "$3"; }} >{box.folder}/"$4.sh"\n')
    setsid.chmod(0o755)
    box.start(agent_url="http://127.0.0.1:9/agent", agent_sha256=agent_sha256())
    until(lambda: not box.pids())
    scripts = [SCRIPT, box.folder / "switch.sh", box.folder / "agent.sh"]
    # SC2164: where there is no folder, what runs does without. SC2086: lists of words.
    for script, exclude in zip(scripts, ["", "SC2164", "SC2164,SC2086,SC2046"], strict=True):
        done = subprocess.run(
            ["shellcheck", f"--exclude={exclude}", str(script)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
