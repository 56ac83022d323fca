"""CosyVoice's image: its server on a real socket with a stand-in for the model, and what its files promise."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
import yaml

from callsheet.engines.speech import CosyVoice as Client
from callsheet.engines.speech import SpeechRequest
from deployments.hosts.cosyvoice import server
from tests.conftest import ROOT, write_tone

FOLDER = ROOT / "deployments/hosts/cosyvoice"


class Tensor:
    """As much of a torch tensor as the server uses."""

    def __init__(self, samples: list[float]) -> None:
        self._samples = samples

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([self._samples], dtype=dtype)


class State:
    """CosyVoice's inner model: the sessions that it has not popped, and where it is."""

    device = "cuda"

    def __init__(self) -> None:
        self.tts_speech_token_dict: dict[str, list[int]] = {}
        self.llm_end_dict: dict[str, bool] = {}
        self.hift_cache_dict: dict[str, None] = {}

    @property
    def sessions(self) -> list[str]:
        return [*self.tts_speech_token_dict, *self.llm_end_dict, *self.hift_cache_dict]


class CosyVoice2:
    """Loads the prompt as CosyVoice does, then yields the segments that a test has set."""

    sample_rate = 24_000

    def __init__(self) -> None:
        self.model = State()
        self.calls: list[dict[str, Any]] = []
        self.segments: list[list[float] | Exception] = [[0.0, 0.5], [-0.5]]
        self.before_segment: Callable[[int], None] = lambda index: None
        self.busy = 0
        self.most_at_once = 0
        self._count = threading.Lock()

    def inference_zero_shot(
        self, tts_text: str, prompt_text: str, prompt_wav: str, *, stream: bool
    ) -> Iterator[dict[str, Tensor]]:
        return self._spoken(
            mode="zero_shot", text=tts_text, words=prompt_text, prompt_wav=prompt_wav, stream=stream
        )

    def inference_cross_lingual(
        self, tts_text: str, prompt_wav: str, *, stream: bool
    ) -> Iterator[dict[str, Tensor]]:
        return self._spoken(mode="cross_lingual", text=tts_text, prompt_wav=prompt_wav, stream=stream)

    def inference_instruct2(
        self, tts_text: str, instruct_text: str, prompt_wav: str, *, stream: bool
    ) -> Iterator[dict[str, Tensor]]:
        return self._spoken(
            mode="instruct2", text=tts_text, words=instruct_text, prompt_wav=prompt_wav, stream=stream
        )

    def _spoken(self, *, prompt_wav: str, **call: Any) -> Iterator[dict[str, Tensor]]:
        with self._count:
            self.busy += 1
            self.most_at_once = max(self.most_at_once, self.busy)
        try:
            for _ in range(3):  # load_wav is called three times, and takes a path alone
                assert isinstance(prompt_wav, str), "Invalid file: tensor"
                samples, rate = soundfile.read(prompt_wav)
            self.calls.append(call | {"path": Path(prompt_wav), "prompt_seconds": len(samples) / rate})
            for index, segment in enumerate(list(self.segments)):
                session = f"session {len(self.calls)}.{index}"
                self.model.tts_speech_token_dict[session] = [1]
                self.model.llm_end_dict[session] = False
                self.model.hift_cache_dict[session] = None
                self.before_segment(index)
                if isinstance(segment, Exception):
                    raise segment
                yield {"tts_speech": Tensor(segment)}
                self.model.tts_speech_token_dict.pop(session)
                self.model.llm_end_dict.pop(session)
                self.model.hift_cache_dict.pop(session)
        finally:
            with self._count:
                self.busy -= 1


class CosyVoice3(CosyVoice2):
    pass


class Served:
    def __init__(self, model: CosyVoice2, url: str, prompt: Path) -> None:
        self.model = model
        self.url = url
        self.prompt = prompt

    def fields(self, text: str = "Hello there.", prompt: Path | bytes | None = None, **words: str) -> dict:
        content = prompt if isinstance(prompt, bytes) else (prompt or self.prompt).read_bytes()
        return {
            "data": {"tts_text": text} | words,
            "files": {"prompt_wav": ("a.wav", content, "audio/wav")},
            "timeout": 10,
        }

    def zero_shot(self, text: str = "Hello there.", prompt: Path | bytes | None = None) -> httpx.Response:
        fields = self.fields(text, prompt, prompt_text="A quiet line to speak like.")
        return httpx.post(f"{self.url}/inference_zero_shot", **fields)


def serve(model: CosyVoice2, folder: Path) -> Iterator[Served]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(server.create_app(model), log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            until(lambda: running.started)
            yield Served(model, url, write_tone(folder / "prompt.wav", seconds=4))
        finally:
            running.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from serve(CosyVoice2(), tmp_path)


@pytest.fixture
def served3(tmp_path: Path) -> Iterator[Served]:
    yield from serve(CosyVoice3(), tmp_path)


def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def samples(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<i2").tolist()


# --- the protocol ---------------------------------------------------------------------------------


def test_the_model_gets_a_file_that_it_can_load_again_and_again(served: Served) -> None:
    assert samples(served.zero_shot()) == [0, 16384, -16384]
    (call,) = served.model.calls
    assert call["prompt_seconds"] == pytest.approx(4)
    assert (call["mode"], call["text"], call["words"]) == (
        "zero_shot",
        "Hello there.",
        "A quiet line to speak like.",
    )


@pytest.mark.parametrize(
    ("mode", "words"),
    [("cross_lingual", {}), ("instruct2", {"instruct_text": "Speak softly.<|endofprompt|>"})],
)
def test_the_other_modes_are_spoken_too(served: Served, mode: str, words: dict[str, str]) -> None:
    answer = httpx.post(f"{served.url}/inference_{mode}", **served.fields(**words))
    assert samples(answer) == [0, 16384, -16384]
    assert served.model.calls[0]["mode"] == mode
    assert served.model.calls[0].get("words") == words.get("instruct_text")


def test_segments_are_never_streamed_in_parts(served: Served) -> None:
    served.zero_shot()
    assert served.model.calls[0]["stream"] is False


async def test_the_client_of_this_project_is_understood(served: Served) -> None:
    async with Client(served.url, name="test") as client:
        await client.ready()
        request = SpeechRequest("Hello there.", "A quiet line to speak like.", served.prompt)
        recording = await client.synthesize(request)
    assert np.frombuffer(recording.pcm, "<i2").tolist() == [0, 16384, -16384]
    assert recording.sample_rate == served.model.sample_rate


def test_samples_over_full_scale_are_clipped_and_do_not_wrap(served: Served) -> None:
    served.model.segments = [[1.0, 1.2, -1.0, -1.5]]
    assert samples(served.zero_shot()) == [32767, 32767, -32768, -32768]


def test_the_first_segment_is_sent_while_the_second_is_made(served: Served) -> None:
    go_on = threading.Event()
    served.model.before_segment = lambda index: None if index == 0 else _wait(go_on)
    fields = served.fields(prompt_text="-")
    with httpx.stream("POST", f"{served.url}/inference_zero_shot", **fields) as answer:
        chunks = answer.iter_bytes()
        assert answer.headers["x-sample-rate"] == "24000"
        assert next(chunks) == np.array([0, 16384], "<i2").tobytes()
        go_on.set()
        assert b"".join(chunks) == np.array([-16384], "<i2").tobytes()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "rate", "said"),
    [
        (30.5, 16_000, "30.50 s; expected 0.1 to 30 s"),
        (0.05, 16_000, "0.05 s; expected"),
        (4, 8_000, "8000 Hz"),
    ],
)
def test_an_unfit_prompt_is_refused_before_the_model_is_asked(
    served: Served, tmp_path: Path, seconds: float, rate: int, said: str
) -> None:
    answer = served.zero_shot(prompt=write_tone(tmp_path / "unfit.wav", seconds=seconds, rate=rate))
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert not served.model.calls


@pytest.mark.parametrize("seconds", [0.1, 30])
def test_a_prompt_of_just_the_allowed_length_is_spoken_like(
    served: Served, tmp_path: Path, seconds: float
) -> None:
    assert samples(served.zero_shot(prompt=write_tone(tmp_path / "edge.wav", seconds=seconds)))


@pytest.mark.parametrize("content", [b"", b"no recording", b"RIFF\x00\x00\x00\x00WAVE"])
def test_bytes_that_are_no_recording_are_refused(served: Served, content: bytes) -> None:
    answer = served.zero_shot(prompt=content)
    assert answer.status_code == 400
    assert not served.model.calls


def test_a_text_without_anything_to_speak_is_no_empty_success(served: Served) -> None:
    assert served.zero_shot(text="  ").status_code == 400
    served.model.segments = []  # what CosyVoice makes of "?!"
    answer = served.zero_shot(text="?!")
    assert answer.status_code == 400
    assert "nothing in tts_text" in answer.json()["detail"]


def test_a_missing_field_is_named(served: Served) -> None:
    answer = httpx.post(f"{served.url}/inference_zero_shot", **served.fields())
    assert answer.status_code == 422
    assert "prompt_text" in answer.text


def test_cosyvoice_3_without_its_mark_is_refused_rather_than_answered_with_noise(served3: Served) -> None:
    answer = served3.zero_shot()
    assert answer.status_code == 400
    assert "<|endofprompt|>" in answer.json()["detail"]
    marked = served3.fields(prompt_text="You are a helpful assistant.<|endofprompt|>A quiet line.")
    assert samples(httpx.post(f"{served3.url}/inference_zero_shot", **marked))


# --- failures -------------------------------------------------------------------------------------


def test_a_first_segment_that_fails_is_an_error_and_not_an_empty_success(served: Served) -> None:
    served.model.segments = [AssertionError("CUDA out of memory")]
    answer = served.zero_shot()
    assert answer.status_code == 500
    assert "CUDA out of memory" in answer.json()["detail"]


def test_a_later_segment_that_fails_cuts_the_answer_visibly(served: Served) -> None:
    served.model.segments = [[0.5], RuntimeError("CUDA error")]
    with pytest.raises(httpx.RemoteProtocolError):
        served.zero_shot()


@pytest.mark.parametrize(
    "segments",
    [[[0.5], [0.5]], [RuntimeError("broken")], [[0.5], RuntimeError("broken")], []],
    ids=["well", "first fails", "second fails", "none"],
)
def test_nothing_of_a_request_is_kept(served: Served, segments: list[list[float] | Exception]) -> None:
    served.model.segments = segments
    with suppress(httpx.RemoteProtocolError):
        served.zero_shot()
    until(lambda: not served.model.calls[0]["path"].exists())
    assert not served.model.model.sessions
    served.model.segments = [[0.5]]
    assert samples(served.zero_shot()) == [16384]  # the turn was given back


def test_a_client_that_leaves_does_not_hold_up_the_next(served: Served) -> None:
    go_on = threading.Event()
    served.model.before_segment = lambda index: None if index == 0 else _wait(go_on)
    served.model.segments = [[0.5]] * 20
    with httpx.stream("POST", f"{served.url}/inference_zero_shot", **served.fields(prompt_text="-")) as left:
        next(left.iter_bytes())
    go_on.set()
    served.model.segments = [[0.25]]
    assert samples(served.zero_shot()) == [8192]
    first, second = served.model.calls
    until(lambda: not first["path"].exists() and not second["path"].exists())
    assert not served.model.model.sessions


# --- one at a time --------------------------------------------------------------------------------


def test_one_synthesis_at_a_time_and_all_are_spoken(served: Served) -> None:
    served.model.before_segment = lambda index: time.sleep(0.02)
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda number: served.zero_shot(f"Line {number}."), range(6)))
    assert all(samples(answer) == [0, 16384, -16384] for answer in answers)
    assert served.model.most_at_once == 1


def test_health_answers_during_a_synthesis_and_asks_nothing_of_the_model(served: Served) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def hold(index: int) -> None:
        begun.set()
        _wait(go_on)

    served.model.before_segment = hold
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(served.zero_shot)
        assert begun.wait(5)
        health = httpx.get(f"{served.url}/health", timeout=2).json()
        go_on.set()
        assert samples(answer.result())
    assert health == {
        "status": "ok",
        "model": "CosyVoice2",
        "sample_rate": 24_000,
        "device": "cuda",
        "text_frontend": "",
    }
    assert len(served.model.calls) == 1


def _wait(event: threading.Event) -> None:
    assert event.wait(5)


# --- loading and the image ------------------------------------------------------------------------


def test_a_folder_without_a_model_is_refused_and_nothing_is_downloaded(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match=re.escape(str(folder))):
            server.load_model(folder)


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert list(services) == ["cosyvoice"]
    return services["cosyvoice"]


def test_only_the_host_itself_is_let_in(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_a_gpu_is_reserved_and_the_server_comes_back_after_a_crash(service: dict[str, Any]) -> None:
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert service["restart"] == "unless-stopped"


def test_the_healthcheck_asks_the_route_and_port_that_are_served(service: dict[str, Any]) -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    (port,) = re.findall(r'"--port", "(\d+)"', dockerfile)
    assert f"http://127.0.0.1:{port}/health'" in service["healthcheck"]["test"][-1]
    assert all(ports.endswith(f":{port}") for ports in service["ports"])
    assert "/health" in {getattr(route, "path", "") for route in server.create_app(CosyVoice2()).routes}


def test_weights_are_mounted_where_the_server_looks_and_are_not_in_the_image(service: dict[str, Any]) -> None:
    (volume,) = service["volumes"]
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert f'"--model-dir", "{volume["target"]}"' in dockerfile
    assert volume["read_only"] is True
    assert re.findall(r"^(?:COPY|ADD) .*", dockerfile, re.MULTILINE) == ["COPY server.py /opt/server.py"]


def test_cosyvoice_is_pinned_to_a_whole_commit(service: dict[str, Any]) -> None:
    (commit,) = re.findall(
        r"^ARG COSYVOICE_COMMIT=([0-9a-f]{40})$", (FOLDER / "Dockerfile").read_text(), re.M
    )
    assert service["image"].endswith(f":{commit[:7]}")


def compose() -> list[str] | None:
    """The command of Docker Compose, version 2 or 1, where there is one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True).returncode
        ):
            return command
    return None


def test_docker_compose_reads_the_file_and_wants_a_model(tmp_path: Path) -> None:
    command = compose()
    if command is None:
        pytest.skip("neither `docker compose` nor docker-compose is installed")
    config = [*command, "-f", str(FOLDER / "compose.yaml"), "config"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COSYVOICE_")}
    without = subprocess.run(config, env=environ, capture_output=True, text=True)
    assert without.returncode != 0
    assert "the folder of a CosyVoice 2 or 3 model" in without.stderr
    done = subprocess.run(
        config, env=environ | {"COSYVOICE_MODEL_DIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"]["cosyvoice"]["volumes"][0]["source"] == str(tmp_path)
