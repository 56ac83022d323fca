"""No secret of a run is found in anything that it leaves: its log, the Prefect server and its database, the store, this machine.

The demo's kinds of takes are made with every secret that there is, through servers that repeat what they were sent. Each
place is searched for something that must be there, too: a search that finds nothing proves nothing otherwise.
"""

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from blocks.engines import LightTTSServer
from blocks.store import R2Bucket
from blocks.vast import VastAccount
from callsheet.r2 import R2Store
from callsheet.r2_client import R2Settings
from callsheet.vastai import VastClient
from tests.callsheet.test_cli import CALLSHEET
from tests.conftest import ROOT, started, write_csv
from tests.fakes.proxy import FaultyProxy
from tests.fakes.rented_box import Boxes
from tests.fakes.vast import KEY, Vast
from tests.flows.run_log import log_of
from tests.flows.test_rented import LINE, Studio

#: In every place something of the run is found by this: shots and script are called so.
MARK = "secretive"
#: As they are given out: with letters that addresses and base64 write otherwise.
SECRETS = {
    "DRAFT_TOKEN": "tok-Zk81/q0+Vd7mXw2",
    "R2_ACCESS_KEY_ID": "AKIAQX7M2ZP4T9KD3VNB",
    "R2_SECRET_ACCESS_KEY": "wJk/3XtnF+MI7K9DENGbPxRf1CYzQpL0",
    "VAST_API_KEY": "vast-9f21c07be4d85a3366",
}
IN_BLOCKS = {
    "bucket": "blk/7Gq2+Rt5Yw8Pz1Lx",
    "vast.ai": "blk-vast-5c0d9a72e1b8",
    "engine": "blk-tok-3e7a91d4c6",
}
#: A signature, as it stands in an address and as it is.
SIGNATURES = {"image": "s1g%2FQ8vZ3nT6yK0b", "missing image": "s1g-m1ss1ng-W4kD7rX2"}
EVERY = {**SECRETS, **IN_BLOCKS, **SIGNATURES}


def written(secret: str) -> set[bytes]:
    """How a secret may stand somewhere: as it is, in an address, and in base64 wherever it begins in what is encoded."""
    ways = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        secret.replace("%2F", "/"),
        json.dumps(secret)[1:-1],
    }
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret.encode()).decode()
        ways.add(encoded[4 if before else 0 : -4])  # what depends on its neighbours is left out
    return {way.encode() for way in ways}


def found_in(content: bytes, secrets: Mapping[str, str] = EVERY) -> list[str]:
    return [name for name, secret in secrets.items() if any(way in content for way in written(secret))]


class Place:
    """Where secrets are searched for: pieces of it by name."""

    def __init__(self, name: str, pieces: Mapping[str, bytes]) -> None:
        self.name, self.pieces = name, pieces

    def leaks(self, secrets: Mapping[str, str] = EVERY) -> list[str]:
        return [
            f"{self.name}: {piece}: {secret}"
            for piece, content in self.pieces.items()
            for secret in found_in(content, secrets)
        ]

    def holds(self, mark: str = MARK) -> bool:
        return any(mark.encode() in content for content in self.pieces.values())


class Scene:
    """A Prefect server, a home, a bucket and hosts of a test's own, and what is said at the terminal."""

    def __init__(self, folder: Path, api: str, s3: str, proxy: FaultyProxy) -> None:
        self.folder, self.api, self.s3, self.proxy = folder, api, s3, proxy
        self.home, self.said = folder / "home", b""
        keys = SECRETS["R2_ACCESS_KEY_ID"], SecretStr(SECRETS["R2_SECRET_ACCESS_KEY"])
        self.bucket = R2Store(R2Settings(s3, "secretive", *keys, "studio"))

    def run(self, *rows: dict[str, Any], store: str = "r2://secretive/studio", code: int = 0) -> None:
        script = write_csv(self.folder / "script" / f"{MARK}.csv", rows)
        settings = ["--fleet", str(self.folder / "fleet.toml"), "--store", store]
        result = subprocess.run(
            [CALLSHEET, "run", str(script), *settings],
            cwd=ROOT,
            env={
                **os.environ,
                **SECRETS,
                "R2_ENDPOINT_URL": self.s3,
                "CALLSHEET_HOME": str(self.home),
                "CALLSHEET_TIME_SCALE": "0.05",
                "PREFECT_API_URL": f"{self.api}/api",
                "PREFECT_HOME": str(self.home / "client"),
                # All that there is to be said, by other libraries too.
                "PREFECT_LOGGING_LEVEL": "DEBUG",
                "PREFECT_LOGGING_ROOT_LEVEL": "INFO",
                "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
            },
            capture_output=True,
            timeout=300,
        )
        self.said += result.stdout + result.stderr
        assert result.returncode == code, self.said.decode()[-4000:]

    def places(self) -> list[Place]:
        return [
            Place("terminal", _lines(self.said)),
            *places_of(self.api, self.home),
            Place("home", _files(self.home, "**/*")),
            Place("bucket", {file.path: self.bucket.get(file.path) for file in self.bucket.list("")}),
        ]


def places_of(api: str, home: Path) -> list[Place]:
    """What a Prefect server has written down, as it tells it and as its database has it."""
    with httpx.Client(base_url=f"{api}/api", timeout=30) as client:
        told = [Place(kind, _pages(client, kind)) for kind in ("logs", "artifacts", "flow_runs", "task_runs")]
        return [
            *told,
            Place("events", _events(client)),
            Place("states", _states(client)),
            Place("database", _files(home / "prefect", "prefect.db*")),
        ]


def _pages(client: httpx.Client, kind: str) -> dict[str, bytes]:
    pages: dict[str, bytes] = {}
    while True:
        asked = {"limit": 200, "offset": 200 * len(pages)}
        found = client.post(f"/{kind}/filter", json=asked).raise_for_status()
        pages[f"page {len(pages)}"] = found.content
        if len(found.json()) < 200:
            return pages


def _events(client: httpx.Client) -> dict[str, bytes]:
    found = client.post("/events/filter", json={"limit": 50}).raise_for_status()
    pages = {"page 0": found.content}
    while following := found.json().get("next_page"):
        found = client.get(following).raise_for_status()
        pages[f"page {len(pages)}"] = found.content
    return pages


def _states(client: httpx.Client) -> dict[str, bytes]:
    """Those that each flow run went through: a run itself tells its last."""
    runs = client.post("/flow_runs/filter", json={}).raise_for_status().json()
    asked = {run["id"]: client.get("/flow_run_states/", params={"flow_run_id": run["id"]}) for run in runs}
    return {run: answer.raise_for_status().content for run, answer in asked.items()}


def _lines(said: bytes) -> dict[str, bytes]:
    """All but the signed address of the report, which is given to the one who ran it: it has the id of the key in it."""
    lines = (line for line in said.splitlines() if not line.startswith(b"Report: "))
    return {str(number): line for number, line in enumerate(lines, start=1)}


def _files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()
    }


@pytest.fixture
def scene(tmp_path: Path, script_folder: Path, s3: str, draft_host: str) -> Iterator[Scene]:
    home = tmp_path / "home"
    lines = ['provider = "static"', "[[host]]", 'name = "h0"', "price_per_hour = 3.6"]
    with FaultyProxy(draft_host) as proxy:
        proxy.token = "Zk81"  # of which `quote` leaves nothing else
        for kind in ("lighttts", "cosyvoice", "comfyui"):
            lines += [
                "[[host.engine]]",
                f'kind = "{kind}"',
                f'url = "{proxy.url}"',
                f'revision = "{tmp_path.name}"',
            ]
            lines += ['token_env = "DRAFT_TOKEN"', *(['token_place = "query"'] if kind == "comfyui" else [])]
        (tmp_path / "fleet.toml").write_text("\n".join(lines))
        for api in started("flows.server_process", env={"CALLSHEET_HOME": str(home)}):
            scene = Scene(tmp_path, api, s3, proxy)
            scene.bucket._client.create_bucket(
                Bucket="secretive", CreateBucketConfiguration={"LocationConstraint": "auto"}
            )
            yield scene


async def _save_blocks(scene: Scene) -> None:
    with temporary_settings({PREFECT_API_URL: f"{scene.api}/api"}):
        # The id of a key is no secret, and a field that is shown; the other's is one of the environment's.
        bucket = R2Bucket(
            bucket="secretive", prefix="studio", access_key_id="id-of-a-key", endpoint=scene.s3,
            secret_access_key=SecretStr(IN_BLOCKS["bucket"]),
        )  # fmt: skip
        await bucket.save(MARK)
        await VastAccount(api_key=SecretStr(IN_BLOCKS["vast.ai"])).save(MARK)
        await LightTTSServer(token=SecretStr(IN_BLOCKS["engine"])).save(MARK)


@pytest.mark.slow
async def test_no_secret_is_left_anywhere(scene: Scene, draft_host: str) -> None:
    await _save_blocks(scene)
    Image.new("RGB", (256, 256), "blue").save(scene.folder / "blue.png")
    httpx.post(
        f"{draft_host}/upload/image",
        files={"image": ("secretive.png", (scene.folder / "blue.png").read_bytes())},
    )
    size = {"width": 256, "height": 256, "title": MARK}
    address = f"{draft_host}/view?filename=secretive.png&type=input"
    rows: list[dict[str, Any]] = [
        {"shot_id": f"{MARK}-1", "text": "The keeper lit the lamp.", "voice": "anna", "visual": "flux_dev", "prompt": "a lamp", **size},
        {"shot_id": f"{MARK}-2", "text": "雨下了三天。", "voice": "wei", **size},
        {
            "shot_id": f"{MARK}-3", "visual": "wan_i2v", "prompt": "x", "param.FRAMES": 9,
            "image": f"{address}&sig={SIGNATURES['image']}", **size,
        },
    ]  # fmt: skip
    # What fails and succeeds afterwards, with the token in what is answered.
    for path in ("/inference_zero_shot", "/prompt", "/upload/image", "/view"):
        scene.proxy.fail(path, "echo")
    scene.run(*rows)
    # What fails for good: in the failures that are published, in the run's state, in artifacts and events.
    scene.proxy.fail("/prompt", "echo", times=100)
    other = {"shot_id": f"{MARK}-4", "visual": "flux_dev", "prompt": "another", **size}
    scene.run(*rows, other, store=f"block:r2-bucket/{MARK}", code=1)
    scene.proxy.fail_no_more()
    # What is refused before it begins.
    missing = {**rows[2], "image": f"{draft_host}/view?filename=none.png&sig={SIGNATURES['missing image']}"}
    scene.run(*rows[:2], missing, code=2)

    places = scene.places()
    assert [place.name for place in places if not place.holds()] == []
    assert places[0].holds("answered 500"), "servers did repeat what they were sent"
    assert "\n".join(leak for place in places for leak in place.leaks()) == ""


@pytest.fixture
def vast(draft_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vast]:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")
    with Vast() as server, server.in_real_time():
        monkeypatch.setenv("VAST_API_KEY", KEY)
        monkeypatch.setenv("VAST_URL", server.url)
        boxes = Boxes(server, draft_host)
        yield server
        boxes.close()


@pytest.mark.slow
async def test_no_secret_of_a_rented_host_is_left_anywhere(
    tmp_path: Path,
    write_script: Callable[..., Path],
    vast: Vast,
    prefect_api: str,
    prefect_home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The account's key, which answers of vast.ai hold, the keys of its boxes, and what their engines ask for."""
    vast.offer()
    mine = Studio(tmp_path, write_script, rules="")
    line = LINE | {"shot_id": f"{MARK}-1"}
    assert (await mine.run(line, name=MARK)).done == 1
    lines = await log_of(prefect_api, mine.state)
    vast.fail("search", "echo", times=9)
    await mine.outcome(line | {"text": "Another line."}, name=MARK)
    assert "Bearer …" in mine.state.message
    await log_of(prefect_api, mine.state)
    assert any("is given back" in one.text for one in lines)
    client = VastClient(SecretStr(KEY), vast.url)
    secrets = {"account": KEY} | {f"box {box.id}": box.key for box in vast.boxes.values()}
    secrets |= {f"token of {one.lease}": client.token(one.lease).get_secret_value() for one in mine.records}
    assert len(secrets) == 3
    places = [*places_of(prefect_api, prefect_home), Place("store", _files(mine.store, "**/*"))]
    places.append(Place("log", {"here": caplog.text.encode()}))
    assert [
        place.name for place in places if not (place.holds() or place.holds("vast.ai answered 400"))
    ] == []
    assert "\n".join(leak for place in places for leak in place.leaks(secrets)) == ""


@pytest.mark.parametrize("secret", EVERY.values())
def test_a_secret_is_found_however_it_is_written(secret: str) -> None:
    around = f'{{"a": "{{}}", "b": "Bearer {secret}"}}'
    for content in (
        around.encode(),
        base64.b64encode(around.encode()),
        base64.b64encode(b"-" + around.encode()),
        base64.b64encode(b"--" + around.encode()),
        quote(around).encode(),
    ):
        assert found_in(content) == [name for name, one in EVERY.items() if one == secret]
