"""The draft host answers as the servers that it stands in for (facts: comfyui.md, speech-and-media.md)."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import websockets

from callsheet.media.audio import Sound
from callsheet.workflow import Workflow
from gpu_service.draw import Storyboard
from gpu_service.voice import read_prompt
from tests.conftest import ROOT, write_tone


def speak(host: str, wav: Path, text: str, **fields: str) -> httpx.Response:
    data = {"tts_text": text, "prompt_text": "这是一句用来模仿的话。"} | fields
    return httpx.post(
        f"{host}/inference_zero_shot", data=data, files={"prompt_wav": wav.read_bytes()}, timeout=30
    )


def pitch(pcm: bytes) -> float:
    import io

    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(pcm, "<i2"), 24_000, format="WAV")
    return read_prompt(file.getvalue()).pitch


def test_speech_is_raw_pcm_in_chunks_without_a_length(draft_host: str, tmp_path: Path) -> None:
    answer = speak(draft_host, write_tone(tmp_path / "p.wav"), "Hello there, keeper.")
    assert answer.status_code == 200
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers
    seconds = len(answer.content) / 48_000
    assert 0.7 < seconds < 3
    assert Sound(np.frombuffer(answer.content, "<i2").astype(np.float32) / 32768, 24_000).levels.max() > -20


@pytest.mark.parametrize("text", ["The keeper lit the lamp.", "掌柜擦着杯子，听窗外的雨声。"])
def test_two_voices_differ_and_each_is_the_same_every_time(
    draft_host: str, tmp_path: Path, text: str
) -> None:
    high = write_tone(tmp_path / "high.wav", pitch=230)
    low = write_tone(tmp_path / "low.wav", pitch=100)
    first, again, other = (speak(draft_host, wav, text).content for wav in (high, high, low))
    assert first == again
    assert pitch(first) > 1.4 * pitch(other)


def test_pace_follows_the_reference(draft_host: str, tmp_path: Path) -> None:
    quick = speak(draft_host, write_tone(tmp_path / "q.wav", 1.5), "The keeper lit the lamp at six.")
    slow = speak(draft_host, write_tone(tmp_path / "s.wav", 6.0), "The keeper lit the lamp at six.")
    assert len(slow.content) > 1.2 * len(quick.content)


def test_servers_faults_are_told_as_they_tell_them(draft_host: str, tmp_path: Path) -> None:
    good = write_tone(tmp_path / "p.wav")
    long, low = write_tone(tmp_path / "l.wav", 31), write_tone(tmp_path / "t.wav", rate=8000)
    assert speak(draft_host, good, "…").content == b"", "nothing but punctuation: 200 and no body"
    assert speak(draft_host, long, "Hello.").content == b"", "CosyVoice's assert is raised inside the stream"
    assert speak(draft_host, low, "Hello.").status_code == 500
    lighttts = {"stream": "false", "tts_model_name": "default"}
    assert speak(draft_host, low, "Hello.", **lighttts).status_code == 400
    assert speak(draft_host, long, "Hello.", **lighttts).status_code == 417
    assert speak(draft_host, good, "Hello.", stream="false", tts_model_name="news").json() == {
        "message": "'news'"
    }
    assert speak(draft_host, good, "Hello.", stream="true", speed="1.5").status_code == 400
    assert httpx.post(f"{draft_host}/inference_zero_shot", data={"tts_text": "x"}).status_code == 422
    assert httpx.get(f"{draft_host}/query_tts_model").json() == {"tts_models": ["draft"]}
    assert httpx.get(f"{draft_host}/healthz").json() == {"status": "healthy"}


def prompt(host: str, graph: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{host}/prompt", json={"prompt": graph, **body})


def graph_of(workflows: dict[str, Workflow], **values: Any) -> Any:
    given = {"POSITIVE_PROMPT": "a lamp", "SEED": 3, "FILENAME_PREFIX": "x/y", "WIDTH": 256, "HEIGHT": 256}
    return workflows["flux_dev"].render(given | values)


def test_bad_graphs_get_comfyuis_400(draft_host: str, workflows: dict[str, Workflow]) -> None:
    graph = graph_of(workflows)
    del graph["7"]["inputs"]["steps"]
    graph["6"]["inputs"]["width"] = 8
    graph["3"]["inputs"]["vae_name"] = "none.pt"
    graph["8"]["inputs"]["samples"] = ["3", 0]
    answer = prompt(draft_host, graph)
    body = answer.json()
    assert answer.status_code == 400
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    kinds = {
        node: [error["type"] for error in problem["errors"]] for node, problem in body["node_errors"].items()
    }
    assert kinds == {
        "3": ["value_not_in_list"],
        "6": ["value_smaller_than_min"],
        "7": ["required_input_missing"],
        "8": ["return_type_mismatch"],
    }
    assert (
        body["node_errors"]["3"]["errors"][0]["details"]
        == "vae_name: 'none.pt' not in ['Wan2_1_VAE_bf16.safetensors', 'ae.safetensors', 'wan_2.1_vae.safetensors']"
    )
    assert body["node_errors"]["3"]["class_type"] == "VAELoader"


@pytest.mark.parametrize(
    ("graph", "kind"),
    [
        ({}, "prompt_no_outputs"),
        ({"1": {"inputs": {}}}, "invalid_prompt"),
        ({"1": {"class_type": "Nope", "inputs": {}}}, "invalid_prompt"),
        (
            {"1": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}},
            "prompt_outputs_failed_validation",
        ),
    ],
)
def test_graphs_that_are_none_are_refused(draft_host: str, graph: Any, kind: str) -> None:
    answer = prompt(draft_host, graph)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, kind)


def test_body_that_is_no_json_is_a_500_in_plain_text(draft_host: str) -> None:
    answer = httpx.post(f"{draft_host}/prompt", content=b"{")
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (500, "text/plain")


def test_uploads_keep_what_is_there(draft_host: str) -> None:
    def upload(content: bytes, **fields: str) -> dict[str, str]:
        answer = httpx.post(f"{draft_host}/upload/image", files={"image": ("a.mp3", content)}, data=fields)
        result: dict[str, str] = answer.json()
        return result

    assert upload(b"one", subfolder="up") == {"name": "a.mp3", "subfolder": "up", "type": "input"}
    assert upload(b"one", subfolder="up")["name"] == "a.mp3"
    assert upload(b"two", subfolder="up")["name"] == "a (1).mp3"
    assert upload(b"three", subfolder="up", overwrite="true")["name"] == "a.mp3"
    view = f"{draft_host}/view?type=input&subfolder=up&filename="
    assert httpx.get(view + "a.mp3").content == b"three"
    assert httpx.get(view + "a.mp3", headers={"Range": "bytes=1-2"}).content == b"hr"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("filename=none.png", 404),
        ("filename=x&subfolder=../..", 403),
        ("filename=..%2Fx", 400),
        ("filename=x&type=etc", 400),
    ],
)
def test_view_stays_in_its_folders(draft_host: str, query: str, status: int) -> None:
    assert httpx.get(f"{draft_host}/view?{query}").status_code == status


def test_upload_stays_in_its_folders(draft_host: str) -> None:
    files = {"image": ("a.png", b"x")}
    assert (
        httpx.post(f"{draft_host}/upload/image", files=files, data={"subfolder": "../.."}).status_code == 400
    )


async def test_events_come_in_comfyuis_order(draft_host: str, workflows: dict[str, Workflow]) -> None:
    async with websockets.connect(f"{draft_host.replace('http', 'ws')}/ws?clientId=me") as socket:
        first = json.loads(await socket.recv())
        assert (first["type"], first["data"]["sid"]) == ("status", "me")
        prompt(draft_host, graph_of(workflows, FILENAME_PREFIX="ws/z"), client_id="me", prompt_id="p-1")
        kinds: list[str] = []
        while True:
            message = json.loads(await socket.recv())
            if message["type"] not in ("status", "progress"):
                kinds.append(message["type"])
            if message["type"] == "executing" and message["data"]["node"] is None:
                break
    assert kinds == [
        "execution_start",
        "execution_cached",
        "executing",
        "executed",
        "execution_success",
        "executing",
    ]
    entry = httpx.get(f"{draft_host}/api/history/p-1").json()["p-1"]
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"]["9"]["images"] == [
        {"filename": "z_00001_.png", "subfolder": "ws", "type": "output"}
    ]
    assert httpx.get(f"{draft_host}/history/unknown").json() == {}


def test_object_info_is_of_a_real_comfyui(draft_host: str) -> None:
    info = httpx.get(f"{draft_host}/object_info/KSampler").json()
    assert info["KSampler"]["input"]["required"]["steps"] == ["INT", {"default": 20, "max": 10000, "min": 1}]
    assert httpx.get(f"{draft_host}/object_info/Nope").json() == {}
    assert httpx.get(f"{draft_host}/system_stats").json()["system"]["comfyui_version"] == "0.3.64"


def test_same_prompt_and_seed_give_the_same_picture() -> None:
    one, again, other = (np.asarray(Storyboard("a lamp", seed, 320, 192).frame(0.3)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_no_text_is_drawn_where_no_font_has_its_glyphs() -> None:
    """Amharic is in no font that we look for: the picture must have no slate, not one of empty boxes."""
    assert Storyboard("የሌሊት ባሕር", 1, 320, 192)._caption is None
    assert Storyboard("the sea", 1, 320, 192)._caption is not None


def test_draft_host_ends_with_its_parent_and_leaves_nothing(tmp_path: Path) -> None:
    """The parent is killed, so it can tell nobody; the pipe it held closes."""
    code = (
        "import subprocess,sys,time\n"
        "p = subprocess.Popen([sys.executable,'-m','gpu_service','--draft','--with-parent'],stdin=subprocess.PIPE,stdout=subprocess.PIPE)\n"
        "print(p.pid, p.stdout.readline().decode(), flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True
    )
    assert parent.stdout is not None
    pid, address = parent.stdout.readline().split(" ", 1)
    url = json.loads(address)["url"]
    assert httpx.get(f"{url}/healthz").status_code == 200
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child = Path(f"/proc/{pid}") if Path("/proc").is_dir() else None
    for _ in range(400):
        try:
            httpx.get(f"{url}/healthz", timeout=1)
        except httpx.TransportError:
            if child is None or not child.exists():
                break
    else:
        raise AssertionError("the draft host outlived its parent")
    assert list(tmp_path.glob("callsheet-*")) == []


def test_it_listens_on_this_machine_only(draft_host: str) -> None:
    assert draft_host.startswith("http://127.0.0.1:")


def test_picture_is_of_the_size_asked_for(draft_host: str) -> None:
    assert Storyboard("a lamp", 1, 321, 193).frame(0.5).size == (321, 193)
    assert isinstance(Storyboard("a lamp", 1, 64, 64).frame(1.0), PIL.Image.Image)
