"""`callsheet workflow` as a person has it: a process, its exit code and what it prints."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import av
import httpx
import PIL.Image
import pytest

from callsheet.preflight import SHIPPED_SIGNATURES
from callsheet.workflow import Workflow, read_workflow
from tests.callsheet.test_workflow import SHIPPED, filled
from tests.callsheet.test_workflow_add import picture_graph
from tests.conftest import write_tone

CALLSHEET = str(Path(sys.executable).with_name("callsheet"))


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [CALLSHEET, "workflow", *(str(argument) for argument in arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def last_json(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


def test_list_names_every_workflow_and_what_is_unverified() -> None:
    done = run("list")
    assert done.returncode == 0
    assert all(name in done.stdout for name in SHIPPED)
    assert "Note: the workflow longcat_avatar is unverified" in done.stdout
    listed = {entry["name"]: entry for entry in last_json(run("list", "--json"))["workflows"]}
    assert listed["wan_i2v"]["estimates"][0]["seconds_per_step"] == 17.75
    assert listed["wan_i2v"]["nodes"][0]["pack"] == "ComfyUI-GGUF"
    assert [entry["verified"] for entry in listed.values()].count(False) == 1


def test_check_without_a_host_passes_all_that_is_shipped() -> None:
    done = run("check", "--json")
    assert done.returncode == 0
    assert [entry["ok"] for entry in last_json(done)["workflows"]] == [True] * len(SHIPPED)
    told = run("check", "longcat_avatar")
    assert "longcat_avatar: ok" in told.stdout
    assert "note: the workflow longcat_avatar is unverified" in told.stdout


def test_check_finds_what_is_wrong_in_a_workflow_of_ones_own(
    tmp_path: Path, workflows: dict[str, Workflow]
) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(workflows["flux_dev"].grown()).replace("euler", "eulr"))
    source = SHIPPED_SIGNATURES.parent.parent / "workflows" / "flux_dev.toml"
    (tmp_path / "mine.toml").write_text(source.read_text("utf-8"), "utf-8")
    done = run("check", "--workflows", tmp_path)
    assert done.returncode == 1
    assert "wrong: node 7 (KSampler): sampler_name is 'eulr'; expected one of euler" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("check", "nope"), "found no workflow nope; expected one of flux_dev"),
        (("check", "--host", "127.0.0.1"), "expected an address such as http://127.0.0.1:8188"),
        (("check", "--host", "http://127.0.0.1:1", "--token-env", "NO_SUCH"), "found no value in NO_SUCH"),
        (("check", "--workflows", "/no/such/folder"), "found no such folder"),
        (("add", "/no/such/file.json"), "found no file that can be read"),
    ],
)
def test_bad_input_is_told_with_exit_code_2(arguments: tuple[str, ...], told: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_host_that_is_not_there_is_told_with_exit_code_1() -> None:
    done = run("check", "--host", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1: no connection" in done.stderr


def test_check_against_a_host_looks_for_its_files(draft_host: str) -> None:
    done = run("check", "--host", draft_host, "--json")
    assert done.returncode == 0, done.stdout
    assert all(not entry["findings"] for entry in last_json(done)["workflows"]), "a draft host has everything"


class BareComfyUI(BaseHTTPRequestHandler):
    """A ComfyUI without files and without GGUF, behind a token."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer s3cret":
            self.send_error(401)
            return
        nodes = json.loads(SHIPPED_SIGNATURES.read_text("utf-8"))
        del nodes["UnetLoaderGGUF"]
        body = json.dumps(nodes if self.path == "/object_info" else {"devices": [], "system": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture
def bare_host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BareComfyUI)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_a_host_lacks_is_named_with_pack_file_and_address(bare_host: str) -> None:
    done = run("check", "wan_i2v", "--host", bare_host, "--token-env", "COMFY_TOKEN", COMFY_TOKEN="s3cret")
    assert done.returncode == 1
    assert "missing: no node UnetLoaderGGUF there; install or update ComfyUI-GGUF: https://" in done.stdout
    assert "models/vae/wan_2.1_vae.safetensors is not there; get it (0.25 GB) from https://" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    refused = run("check", "wan_i2v", "--host", bare_host)
    assert refused.returncode == 1
    assert "is its token set?" in refused.stderr


def test_added_workflow_is_read_checked_and_told(tmp_path: Path) -> None:
    file = tmp_path / "My Portrait.json"
    file.write_text(json.dumps(picture_graph()))
    folder = tmp_path / "own"
    done = run("add", file, "--workflows", folder)
    assert done.returncode == 0, done.stderr
    assert "POSITIVE_PROMPT" in done.stdout
    assert "6.text" in done.stdout
    assert "Look at: " in done.stdout
    workflow = read_workflow(folder / "My_Portrait.json")
    assert workflow.kind == "image"
    assert run("check", "--workflows", folder).returncode == 0
    assert "unverified" in run("list", "--workflows", folder).stdout


@pytest.mark.slow
def test_workflow_is_replaced_by_force_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(picture_graph()))
    folder = tmp_path / "own"
    assert run("add", file, "--workflows", folder, "--name", "mine").returncode == 0
    before = (folder / "mine.toml").read_text()
    file.write_text(json.dumps(picture_graph()).replace("a bottle", "x").replace("512", "640"))
    again = run("add", file, "--workflows", folder, "--name", "mine")
    assert again.returncode == 2
    assert "expected another --name, or --force" in again.stderr
    assert (folder / "mine.toml").read_text() == before
    forced = run("add", file, "--workflows", folder, "--name", "mine", "--force", "--json")
    assert forced.returncode == 0
    assert {found["variable"]: found["value"] for found in last_json(forced)["found"]}["WIDTH"] == 640
    assert (folder / "mine.toml").read_text() != before


@pytest.mark.parametrize(
    ("content", "arguments", "told"),
    [
        ('{"nodes": [], "links": [], "version": 0.4}', (), "Workflow → Export (API)"),
        ("{", (), "JSON that does not parse"),
        ("{}", (), "no graph"),
        ('{"1": {"class_type": "VAEDecode", "inputs": {}}}', (), "no node that saves"),
        ("{}", ("--kind", "film"), "expected one of image, video, avatar"),
        ("{}", ("--name", "../x"), "expected letters, digits"),
    ],
)
def test_file_that_is_no_exported_graph_is_told_and_nothing_is_written(
    tmp_path: Path, content: str, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    done = run("add", tmp_path / "a.json", "--workflows", tmp_path / "own", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "own").exists()


def test_half_a_character_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    graph = picture_graph()
    graph["7"]["inputs"]["text"] = "\ud83c"
    (tmp_path / "a.json").write_text(json.dumps(graph))
    done = run("add", tmp_path / "a.json", "--workflows", tmp_path / "own")
    assert done.returncode == 2
    assert "half a character" in done.stderr
    assert not (tmp_path / "own").exists()


def test_draft_host_draws_a_longcat_avatar_with_loras(
    draft_host: str, workflows: dict[str, Workflow], tmp_path: Path
) -> None:
    """A draft has nodes and LoRAs whose signatures and files it never saw, so that a script can be tried."""
    PIL.Image.new("RGB", (64, 64), "navy").save(tmp_path / "face.png")
    sound = write_tone(tmp_path / "line.wav", 4.0)
    for path in (tmp_path / "face.png", sound):
        files = {"image": (path.name, path.read_bytes())}
        httpx.post(f"{draft_host}/upload/image", files=files).raise_for_status()
    avatar = workflows["longcat_avatar"]
    loras = avatar.variables["LORAS"].parse("never/seen.safetensors:0.5")
    graph = filled(avatar, 2, IMAGE="face.png", AUDIO="line.wav", WIDTH=256, HEIGHT=256, LORAS=loras)
    answer = httpx.post(f"{draft_host}/prompt", json={"prompt": graph, "prompt_id": "longcat"})
    assert answer.status_code == 200, answer.text
    flux = filled(
        workflows["flux_dev"],
        WIDTH=256,
        HEIGHT=256,
        LORAS=workflows["flux_dev"].variables["LORAS"].parse("x.pt"),
    )
    assert httpx.post(f"{draft_host}/prompt", json={"prompt": flux}).status_code == 200
    for _ in range(300):
        entry = httpx.get(f"{draft_host}/history/longcat").json().get("longcat")
        if entry:
            break
        time.sleep(0.1)
    (item,) = entry["outputs"]["19"]["gifs"]
    where = {key: item[key] for key in ("filename", "subfolder", "type")}
    (tmp_path / "out.mp4").write_bytes(httpx.get(f"{draft_host}/view", params=where).content)
    with av.open(str(tmp_path / "out.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.width) == (173, 25, 256)
        assert film.streams.audio
