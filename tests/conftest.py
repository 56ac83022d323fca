"""What tests share: a draft host, a Prefect server, small scripts and voices."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, sync_playwright

from callsheet.workflow import SHIPPED_WORKFLOWS, Workflow, read_workflows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes what belongs to the person who runs it."""
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("CALLSHEET_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for name in (
        "R2_ACCOUNT_ID",
        "R2_ENDPOINT_URL",
        "R2_ACCESS_KEY_ID",
        "R2_SECRET_ACCESS_KEY",
        "CALLSHEET_TIME_SCALE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def workflows() -> dict[str, Workflow]:
    return read_workflows(SHIPPED_WORKFLOWS)


def started(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Runs a server as the project does and yields its address; it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.stdin.close()
        process.wait(timeout=15)
        process.stdout.close()


@pytest.fixture(scope="session")
def draft_host() -> Iterator[str]:
    yield from started("gpu_service", "--draft", "--with-parent")


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the test session's Prefect server keeps its files."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def prefect_api(prefect_home: Path) -> Iterator[str]:
    """A full Prefect server, the one that `callsheet run` brings; flows of the test session run against it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.server import deliver_what_is_queued

    for url in started("flows.server_process", env={"CALLSHEET_HOME": str(prefect_home)}):
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            yield url
            asyncio.run(deliver_what_is_queued())


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """moto's S3 server, on a free port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's, which `.ci/run` installs: Playwright's own is a download of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


def write_tone(
    path: Path, seconds: float = 4.0, rate: int = 16_000, pitch: float = 180.0, level: float = 0.4
) -> Path:
    """A recording that has the form of speech: a buzz in syllables, so that level and pitch can be measured."""
    at = np.arange(int(seconds * rate)) / rate
    buzz = (
        np.sign(np.sin(2 * np.pi * pitch * at)) * level * (0.35 + 0.65 * np.abs(np.sin(2 * np.pi * 2 * at)))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, buzz, rate, subtype="PCM_16")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], *, encoding: str = "utf-8") -> Path:
    """Rows as CSV, the header being all of their columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


VOICE_ROWS = (
    {
        "voice": "anna",
        "audio": "anna.wav",
        "transcript": "A quiet line to speak like.",
        "language": "en",
        "consent": "synthetic",
        "licence": "CC0-1.0",
    },
    {
        "voice": "wei",
        "audio": "wei.wav",
        "transcript": "这是一句用来模仿的话。",
        "language": "zh",
        "consent": "synthetic",
        "licence": "CC0-1.0",
    },
)


@pytest.fixture
def script_folder(tmp_path: Path) -> Path:
    """A folder with two voices, ready for a script."""
    folder = tmp_path / "script"
    write_tone(folder / "anna.wav", pitch=210)
    write_tone(folder / "wei.wav", pitch=110)
    write_csv(folder / "voices.csv", VOICE_ROWS)
    return folder


@pytest.fixture
def write_script(script_folder: Path) -> Callable[..., Path]:
    """Writes a script beside the voices: ``write_script({"shot_id": "a", …}, …)``."""

    def write(*rows: Mapping[str, object], name: str = "script.csv", encoding: str = "utf-8") -> Path:
        return write_csv(script_folder / name, rows, encoding=encoding)

    return write


def write_fleet(
    path: Path,
    hosts: Mapping[str, str],
    *,
    revision: str = "test-1",
    price: float = 0.0,
    relative_speed: float = 1.0,
) -> Path:
    """A static fleet: name to address, each with the three engines of a draft host."""
    lines = ['provider = "static"']
    for name, url in hosts.items():
        lines += ["[[host]]", f'name = "{name}"', f"price_per_hour = {price}"]
        for kind in ("lighttts", "cosyvoice", "comfyui"):
            lines += [
                "[[host.engine]]",
                f'kind = "{kind}"',
                f'url = "{url}"',
                f'revision = "{revision}"',
                f"relative_speed = {relative_speed}",
            ]
    path.write_text("\n".join(lines), "utf-8")
    return path
