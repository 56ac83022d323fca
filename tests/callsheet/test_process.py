import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from callsheet.errors import BadInput, HostFault
from callsheet.process import served_by
from callsheet.scratch import scratch_folder, sweep
from callsheet.serving import listen
from callsheet.timing import scaled


async def test_server_is_there_while_the_block_lasts_and_gone_after() -> None:
    async with served_by("gpu_service", "--draft", "--with-parent") as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


async def test_server_that_does_not_start_says_why() -> None:
    found = r"gpu_service did not start, it ended before it listened: .*arguments are required: --draft"
    with pytest.raises(HostFault, match=found):
        async with served_by("gpu_service"):
            pass


async def test_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mute.py").write_text("import sys; sys.stdin.read()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = r"mute did not start, it did not listen within 0\.5 s: it said nothing"
    with pytest.raises(HostFault, match=found):
        async with served_by("mute", patience=0.5):
            pass


async def test_a_small_time_scale_does_not_hurry_the_start_of_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.0001")
    async with served_by("gpu_service", "--draft", "--with-parent") as url:
        assert url.startswith("http://127.0.0.1:")


def test_scratch_folders_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (
        f"callsheet-run-{dead.pid}-x",
        f"callsheet-run-{os.getpid()}-x",
        "callsheet-run-note",
        "other",
    ):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"callsheet-run-{os.getpid()}-x",
        "callsheet-run-note",
        "other",
    ]


def test_scratch_folder_is_gone_after_use() -> None:
    with scratch_folder() as folder:
        (folder / "a.wav").write_bytes(b"x")
    assert not folder.exists()


@pytest.mark.parametrize(("setting", "seconds"), [("1", 60.0), ("0.01", 0.6), ("3", 180.0)])
def test_one_setting_scales_every_time_out(
    monkeypatch: pytest.MonkeyPatch, setting: str, seconds: float
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", setting)
    assert scaled(60) == pytest.approx(seconds)


@pytest.mark.parametrize("setting", ["0", "-1", "soon", "nan", "inf"])
def test_time_scale_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", setting)
    with pytest.raises(BadInput, match="CALLSHEET_TIME_SCALE"):
        scaled(1)


async def test_answers_are_not_held_back_by_nagle() -> None:
    """With an unnamed protocol asyncio leaves Nagle's algorithm on, and each answer took 40 ms longer."""
    off: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        off.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen()
    async with await asyncio.start_server(connected, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await off
        writer.close()
