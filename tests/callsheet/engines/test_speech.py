"""The speech clients against the draft host and against a server with every fault of the real ones."""

import asyncio
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from callsheet.engines.http import Unreachable
from callsheet.engines.instructions import INSTRUCTIONS
from callsheet.engines.speech import CosyVoice, LightTTS, Recording, SpeechRequest, write_wav
from callsheet.errors import BadInput, BadOutput, HostFault, HostLacks, Transient
from callsheet.media.audio import read_sound
from callsheet.media.speech import Line, check_line, longest_seconds, profile_of
from tests.conftest import write_tone
from tests.fakes.proxy import FaultyProxy
from tests.fakes.speech_server import Fault, SpeechServer

TEXT = "The keeper lit the lamp at six and wrote one line."
SYSTEM = "You are a helpful assistant."


@pytest.fixture
def server() -> Iterator[SpeechServer]:
    with SpeechServer() as server:
        yield server


@pytest.fixture
def request_(tmp_path: Path) -> SpeechRequest:
    prompt = write_tone(tmp_path / "p.wav", 1.7, pitch=180)
    return SpeechRequest(TEXT, "a quiet line to speak like", prompt, longest_seconds=longest_seconds(TEXT))


def faults(recording: Recording, request: SpeechRequest) -> list[str]:
    """The checks that a recording does not pass."""
    profile = profile_of(read_sound(request.prompt_audio), request.prompt_text)
    line = Line(request.text, recording.sample_rate, request.speed, profile)
    return [str(check) for check in check_line(recording.sound, line) if not check.ok]


@pytest.mark.parametrize("kind", [CosyVoice, LightTTS])
@pytest.mark.parametrize("model", ["cosyvoice2", "cosyvoice3"])
async def test_what_the_draft_host_speaks_passes_the_checks(
    draft_host: str, request_: SpeechRequest, kind: type[CosyVoice], model: str
) -> None:
    async with kind(draft_host, name="draft", model=model) as server:  # type: ignore[arg-type]
        await server.ready()
        assert faults(await server.synthesize(request_), request_) == []


async def test_lighttts_speaks_faster_when_asked(draft_host: str, request_: SpeechRequest) -> None:
    async with LightTTS(draft_host, name="draft") as server:
        slow = await server.synthesize(request_)
        fast = await server.synthesize(replace(request_, speed=1.5))
    assert 0.6 < len(fast.pcm) / len(slow.pcm) < 0.8


async def test_the_first_cosyvoice_is_saved_at_its_own_rate(
    server: SpeechServer, request_: SpeechRequest, tmp_path: Path
) -> None:
    async with CosyVoice(server.url, name="x", model="cosyvoice") as client:
        recording = await client.synthesize(request_)
    write_wav([recording], tmp_path / "take.wav")
    assert read_sound(tmp_path / "take.wav").rate == 22_050


@pytest.mark.parametrize(
    ("model", "mode", "path", "wanted"),
    [
        ("cosyvoice2", "zero_shot", "/inference_zero_shot", {"tts_text": TEXT, "prompt_text": "a quiet line to speak like"}),
        ("cosyvoice3", "zero_shot", "/inference_zero_shot",
         {"tts_text": TEXT, "prompt_text": f"{SYSTEM}<|endofprompt|>a quiet line to speak like"}),
        ("cosyvoice2", "cross_lingual", "/inference_cross_lingual", {"tts_text": TEXT}),
        ("cosyvoice3", "cross_lingual", "/inference_cross_lingual", {"tts_text": f"{SYSTEM}<|endofprompt|>{TEXT}"}),
        ("cosyvoice2", "instruct2", "/inference_instruct2",
         {"tts_text": TEXT, "instruct_text": f"{INSTRUCTIONS['happy']}<|endofprompt|>"}),
        ("cosyvoice3", "instruct2", "/inference_instruct2",
         {"tts_text": TEXT, "instruct_text": f"{SYSTEM} {INSTRUCTIONS['happy']}<|endofprompt|>"}),
    ],
)  # fmt: skip
async def test_each_mode_is_asked_in_the_form_its_model_was_trained_with(
    server: SpeechServer, request_: SpeechRequest, model: str, mode: str, path: str, wanted: dict[str, str]
) -> None:
    async with CosyVoice(server.url, name="x", model=model) as client:  # type: ignore[arg-type]
        await client.synthesize(replace(request_, mode=mode, instruct="happy"))  # type: ignore[arg-type]
    (request,) = server.requests
    assert (request.path, request.fields) == (path, wanted)
    assert request.prompt_bytes == request_.prompt_audio.stat().st_size


async def test_lighttts_is_sent_all_its_fields_and_no_other_mode(
    server: SpeechServer, request_: SpeechRequest
) -> None:
    async with LightTTS(server.url, name="x", style="default") as client:
        await client.synthesize(replace(request_, speed=1.2))
        with pytest.raises(BadInput, match="zero-shot alone; found instruct2"):
            await client.synthesize(replace(request_, mode="instruct2", instruct="happy"))
    assert server.requests[0].fields == {
        "tts_text": TEXT, "prompt_text": "a quiet line to speak like", "stream": "false",
        "tts_model_name": "default", "speed": "1.2",
    }  # fmt: skip


def test_there_are_as_many_instructions_as_cosyvoice_was_trained_with() -> None:
    assert len(INSTRUCTIONS) == 26


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("cut", Transient, "the connection broke"),
        ("empty", Transient, "200 with an empty body"),
        ("odd", Transient, "no whole number of 16-bit samples"),
        ("reset", Transient, "the connection broke"),
        ("500", Transient, "answered 500"),
        ("417", BadInput, "answered 417.*input is too long"),
        ("422", BadInput, "answered 422.*prompt_text"),
        ("404", HostLacks, "serves no /inference_zero_shot"),
        ("endless", BadOutput, "sent more than"),
        ("runaway", BadOutput, "sent more than"),
    ],
)
async def test_a_broken_answer_is_an_error_that_names_the_engine_and_the_next_is_taken(
    server: SpeechServer, request_: SpeechRequest, fault: Fault, error: type[Exception], told: str
) -> None:
    server.fail(fault)
    async with CosyVoice(server.url, name="a10-1/cosyvoice") as client:
        with pytest.raises(error, match=f"a10-1/cosyvoice: .*{told}|a10-1/cosyvoice: {told}"):
            await client.synthesize(request_)
        assert faults(await client.synthesize(request_), request_) == []


@pytest.mark.parametrize("fault", ["hang", "hang_middle", "drip"])
async def test_a_server_that_hangs_or_drips_is_given_up_in_time(
    server: SpeechServer, request_: SpeechRequest, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.003")
    server.fail(fault)
    async with CosyVoice(server.url, name="a10-1/cosyvoice") as client:
        with pytest.raises(Transient, match=r"a10-1/cosyvoice: (no answer in time|stopped in the middle)"):
            await client.synthesize(request_)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("tiny", "seconds_per_token"),
        ("silence", "rms_dbfs"),
        ("wrong_rate", "pitch_to_voice"),
        ("wraps", "int16_wraps"),
        ("clipped", "clipped_run_samples"),
        ("other_words", "seconds_beyond_text"),
    ],
)
async def test_an_answer_that_is_whole_and_wrong_is_found_by_listening(
    server: SpeechServer, request_: SpeechRequest, fault: Fault, told: str
) -> None:
    server.fail(fault)
    async with CosyVoice(server.url, name="x") as client:
        found = faults(await client.synthesize(replace(request_, longest_seconds=300)), request_)
    assert any(fault.startswith(told) for fault in found), found


async def test_the_same_bytes_for_two_texts_at_once_are_known_to_both(
    server: SpeechServer, request_: SpeechRequest
) -> None:
    server.fail("twin", times=2)
    other = replace(request_, text="Nobody wrote to tell the keeper of it.")
    async with LightTTS(server.url, name="x") as client:
        one, two = await asyncio.gather(client.synthesize(request_), client.synthesize(other))
    assert one.pcm == two.pcm
    assert (await one.flight.twin(), await two.flight.twin()) == (other.text, TEXT)


async def test_a_recording_is_trusted_after_what_was_under_way_with_it(
    server: SpeechServer, request_: SpeechRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.005")
    server.fail("hang", text="Nobody")
    async with LightTTS(server.url, name="x") as client:
        other = asyncio.create_task(client.synthesize(replace(request_, text="Nobody wrote to him.")))
        while server.in_flight < 1:
            await asyncio.sleep(0)
        recording = await client.synthesize(request_)
        verdict = asyncio.create_task(recording.flight.twin())
        await asyncio.sleep(0)
        assert not verdict.done(), "the other may still come back with the same bytes"
        with pytest.raises(Transient):
            await other
        assert await verdict is None


async def test_the_same_line_twice_is_no_fault_of_the_server(
    server: SpeechServer, request_: SpeechRequest
) -> None:
    server.fail("twin", times=2)
    same = replace(request_, text=TEXT.upper())
    async with LightTTS(server.url, name="x") as client:
        one, two = await asyncio.gather(client.synthesize(request_), client.synthesize(same))
    assert (await one.flight.twin(), await two.flight.twin()) == (None, None)


async def test_nobody_there_is_unreachable(request_: SpeechRequest) -> None:
    async with CosyVoice("http://127.0.0.1:9", name="gone/cosyvoice") as server:
        with pytest.raises(Unreachable, match="gone/cosyvoice: no connection"):
            await server.ready()
        with pytest.raises(Unreachable):
            await server.synthesize(request_)


async def test_another_server_is_not_taken_for_one() -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"tts_models": []}' if "tts" in self.path else b"<html>welcome</html>")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{page.server_port}"
        async with CosyVoice(url, name="x") as server:
            with pytest.raises(HostFault, match="serves no /inference_zero_shot"):
                await server.ready()
        async with LightTTS(url, name="x") as server:
            with pytest.raises(HostLacks, match="has the styles none"):
                await server.ready()
        page.shutdown()


async def test_unknown_style_is_found_before_it_costs_a_slot(draft_host: str) -> None:
    async with LightTTS(draft_host, name="x", style="news") as server:
        with pytest.raises(HostLacks, match="has the styles draft; news was asked for"):
            await server.ready()


async def test_refusal_is_bad_input_with_the_servers_reason(draft_host: str, tmp_path: Path) -> None:
    long = SpeechRequest(TEXT, "x", write_tone(tmp_path / "long.wav", 31.0))
    async with LightTTS(draft_host, name="x") as server:
        with pytest.raises(BadInput, match=r"417.*longer than 30s"):
            await server.synthesize(long)


async def test_token_goes_into_a_header_and_into_no_message(draft_host: str, request_: SpeechRequest) -> None:
    with FaultyProxy(draft_host) as proxy:
        proxy.fail("/inference_zero_shot", "500")
        async with CosyVoice(proxy.url, name="x", token=SecretStr("secret-token")) as server:
            with pytest.raises(Transient) as caught:
                await server.synthesize(request_)
            assert server._http.headers["Authorization"] == "Bearer secret-token"
        assert "secret-token" not in str(caught.value) + str(proxy.requests)


@pytest.mark.parametrize("kind", [CosyVoice, LightTTS])
async def test_a_server_that_repeats_the_request_shows_no_token(
    draft_host: str, request_: SpeechRequest, kind: type[CosyVoice]
) -> None:
    token = SecretStr("tok/5f2e77+d1")
    with FaultyProxy(draft_host) as proxy:
        proxy.fail("/", "echo", times=2)
        async with kind(proxy.url, name="host/speech", token=token) as server:
            with pytest.raises(Transient, match=r"answered 500: .*Authorization: Bearer …") as fault:
                await server.ready()
            with pytest.raises(Transient) as spoken:
                await server.synthesize(request_)
    assert token.get_secret_value() not in f"{fault.value!r} {spoken.value!r}"


def test_a_token_that_no_header_may_hold_is_refused_and_not_repeated() -> None:
    """The message of httpx, and the repr of what Python raises, would repeat the header."""
    for token in ("tok-5f2e77\n", "tok 5f2e77", "tök-5f2e77"):
        with pytest.raises(BadInput) as fault:
            LightTTS("http://127.0.0.1:1", name="host/lighttts", token=SecretStr(token))
        assert "5f2e77" not in repr(fault.value)
