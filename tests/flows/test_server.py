"""The Prefect server that a run brings: a full one, with a UI, on this machine only, gone with its parent."""

import sqlite3
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows.server import prefect_server


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
