"""Blocks are saved, loaded and used against a real Prefect server."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from blocks.engines import ComfyUIServer, CosyVoiceServer, LightTTSServer, server_of
from blocks.fleet import GpuFleet, open_fleet
from blocks.store import LocalFolder, R2Bucket, open_store
from blocks.vast import VastAccount, open_account
from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.speech import CosyVoice, LightTTS
from callsheet.errors import BadInput
from callsheet.fleet import Engine, Fleet, Host
from callsheet.r2 import R2Store
from tests.fakes.vast import KEY, Vast

ENGINE = Engine(kind="lighttts", url="http://127.0.0.1:8080", revision="cosyvoice2-0.5b", slots=4)

pytestmark = pytest.mark.usefixtures("prefect_api")


async def test_servers_are_saved_and_give_their_clients(draft_host: str) -> None:
    await CosyVoiceServer(url=draft_host, token=SecretStr("secret")).save("cosy", overwrite=True)
    await LightTTSServer(url=draft_host).save("light", overwrite=True)
    await ComfyUIServer(url=draft_host).save("comfy", overwrite=True)
    for block, kind in ((CosyVoiceServer, CosyVoice), (LightTTSServer, LightTTS), (ComfyUIServer, ComfyUI)):
        loaded = await block.aload(
            {CosyVoiceServer: "cosy", LightTTSServer: "light", ComfyUIServer: "comfy"}[block]
        )  # type: ignore[attr-defined]
        assert "secret" not in repr(loaded)
        async with loaded.client() as client:
            assert isinstance(client, kind)
            await client.ready()


async def test_fleet_block_has_the_fields_of_the_file() -> None:
    host = Host(name="a10-1", price_per_hour=0.35, engines=(ENGINE,))
    await GpuFleet(provider="static", host=[host]).save("studio", overwrite=True)
    fleet = await open_fleet("block:gpu-fleet/studio")
    assert fleet == Fleet(provider="static", hosts=(host,))
    assert (await open_fleet("draft")).provider == "draft"


async def test_fleet_block_that_is_not_there_or_contradicts_itself_is_bad_input() -> None:
    with pytest.raises(BadInput, match="block:gpu-fleet/nowhere"):
        await open_fleet("block:gpu-fleet/nowhere")
    await GpuFleet(provider="static").save("empty", overwrite=True)
    with pytest.raises(BadInput, match="at least one"):
        await open_fleet("block:gpu-fleet/empty")


async def test_stores_are_opened_by_block(tmp_path: Path) -> None:
    await LocalFolder(folder=str(tmp_path)).save("here", overwrite=True)
    store = await open_store("block:callsheet-local-folder/here")
    store.put("a.json", b"{}")
    assert (tmp_path / "a.json").read_bytes() == b"{}"
    secret = {"access_key_id": "key", "secret_access_key": SecretStr("very-secret")}
    await R2Bucket(account_id="abc", bucket="media", prefix="/p/", jurisdiction="eu", **secret).save(
        "main", overwrite=True
    )
    remote = await open_store("block:r2-bucket/main")
    assert isinstance(remote, R2Store)
    assert remote.settings.endpoint == "https://abc.eu.r2.cloudflarestorage.com"
    assert remote.settings.prefix == "p"
    assert "very-secret" not in repr(remote.settings) + str(remote)


async def test_store_block_that_is_none_is_bad_input() -> None:
    with pytest.raises(BadInput, match="block:r2-bucket/nowhere"):
        await open_store("block:r2-bucket/nowhere")
    await CosyVoiceServer().save("cosy", overwrite=True)
    with pytest.raises(BadInput, match="found a CosyVoiceServer"):
        await open_store("block:cosyvoice-server/cosy")
    with pytest.raises(BadInput, match="neither account_id nor endpoint"):
        R2Bucket(bucket="b", access_key_id="k", secret_access_key=SecretStr("s")).client()


def test_engine_of_the_fleet_takes_its_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINE.model_copy(update={"token_env": "A_TOKEN"})
    with pytest.raises(BadInput, match="found no environment variable A_TOKEN"):
        server_of(engine)
    monkeypatch.setenv("A_TOKEN", "secret")
    server = server_of(engine)
    assert isinstance(server, LightTTSServer)
    assert server.token == SecretStr("secret")


async def test_vast_account_is_saved_and_gives_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with Vast() as vast:
        await VastAccount(api_key=SecretStr(KEY), server_url=vast.url).save("studio", overwrite=True)
        loaded = await VastAccount.aload("studio")
        assert KEY not in repr(loaded)
        client = await open_account("block:vast-account/studio")
        assert client.credit() == vast.credit
        monkeypatch.setenv("VAST_API_KEY", KEY)
        monkeypatch.setenv("VAST_URL", vast.url)
        assert (await open_account()).instances() == []
    await LocalFolder(folder="x").save("no-account", overwrite=True)
    with pytest.raises(BadInput, match="found a LocalFolder; expected a VastAccount"):
        await open_account("block:callsheet-local-folder/no-account")
    with pytest.raises(BadInput, match="block:vast-account/nowhere"):
        await open_account("block:vast-account/nowhere")
