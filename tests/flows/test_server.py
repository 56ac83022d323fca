"""The Prefect server that a run brings: a full one, with a UI, on this machine only, gone with its parent."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import websockets
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from starlette.types import ASGIApp, Receive, Scope, Send

from callsheet.serving import listen, serve, url_of
from flows.server import prefect_server
from flows.server_process import AskedAgain


def test_it_is_a_full_server_with_services_and_a_ui(prefect_api: str) -> None:
    assert prefect_api.startswith("http://127.0.0.1:")
    assert httpx.get(f"{prefect_api}/api/health").json() is True
    assert httpx.get(f"{prefect_api}/ui-settings").json()["api_url"] == f"{prefect_api}/api"
    page = httpx.get(f"{prefect_api}/", headers={"accept": "text/html"}, follow_redirects=True)
    assert "Prefect" in page.text
    settings = httpx.get(f"{prefect_api}/api/admin/settings").json()["server"]
    assert settings["ephemeral"]["enabled"] is False or settings["services"]["scheduler"]["enabled"] is True
    assert settings["concurrency"]["lease_storage"] == "prefect.server.concurrency.lease_storage.filesystem"
    assert settings["analytics_enabled"] is False


async def test_an_api_that_is_configured_is_honoured(prefect_api: str) -> None:
    async with prefect_server() as ui:
        assert ui == prefect_api


@pytest.mark.slow
async def test_its_database_is_callsheets_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_HOME", str(tmp_path / "home"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        async with prefect_server() as ui:
            assert str(get_current_settings().api.url) == f"{ui}/api"
            assert httpx.get(f"{ui}/api/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{ui}/api/health")
    with sqlite3.connect(tmp_path / "home/prefect/prefect.db") as database:
        assert database.execute("select count(*) from flow").fetchone() == (0,)


class BusyDatabase:
    """Answers 503 to the first requests, and raises after its answer as Starlette does; then gives the body back."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body = b""
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        self.asked += 1
        busy = self.asked <= self.times
        await send({"type": "http.response.start", "status": 503 if busy else 200, "headers": []})
        await send({"type": "http.response.body", "body": b"busy" if busy else body})
        if busy:
            raise RuntimeError("database is locked")


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    class OnlyHttp:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await app(scope, receive, send)

    listener = listen()
    started = asyncio.Event()
    server = asyncio.create_task(serve(OnlyHttp(), listener, with_parent=False, started=started.set))
    await started.wait()
    yield url_of(listener)
    server.cancel()
    await asyncio.wait([server])


async def test_a_busy_database_is_asked_again_by_the_server_itself() -> None:
    database = BusyDatabase(times=9)
    async with serving(AskedAgain(database)) as url, httpx.AsyncClient() as client:
        answer = await client.post(url, content=b"x" * 300_000)
    assert (answer.status_code, len(answer.content), database.asked) == (200, 300_000, 10)


async def test_a_database_that_stays_busy_is_said_to_be() -> None:
    database = BusyDatabase(times=1_000)
    async with serving(AskedAgain(database, patience=0.3)) as url, httpx.AsyncClient() as client:
        answer = await client.post(url, content=b"x")
    assert (answer.status_code, answer.content) == (503, b"busy")
    assert 2 < database.asked < 20


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Origin": "http://localhost:PORT"}, 200),
        ({"Host": "localhost:PORT"}, 200),
        ({"Host": "localhost:1234", "Origin": "http://localhost:1234"}, 200),
        ({"Host": "evil.example:1234", "Origin": "http://evil.example:1234"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "rebound.evil.example:PORT"}, 403),
        ({"Host": "127.0.0.1.evil.example:PORT"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(prefect_api: str, headers: dict[str, str], status: int) -> None:
    """A page may send what the server takes for JSON without asking it first: without a content type."""
    port = prefect_api.rpartition(":")[2]
    asked = {name: value.replace("PORT", port) for name, value in headers.items()}
    answer = httpx.post(f"{prefect_api}/api/flow_runs/filter", content=b'{"limit": 1}', headers=asked)
    assert answer.status_code == status, answer.text
    preflight = httpx.options(
        f"{prefect_api}/api/flow_runs/filter",
        headers={"Access-Control-Request-Method": "POST", "Origin": "https://evil.example", **asked},
    )
    if "evil" in str(preflight.request.headers):
        assert preflight.status_code == 403
        assert "access-control-allow-origin" not in preflight.headers


async def test_a_page_of_another_site_gets_no_events(prefect_api: str) -> None:
    address = prefect_api.replace("http", "ws") + "/api/events/out"
    with pytest.raises(websockets.exceptions.InvalidStatus):
        async with websockets.connect(address, origin=websockets.Origin("https://evil.example")):
            pass
