"""The speech clients against the draft host, and behind a link that breaks in every way."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from callsheet.engines.http import Unreachable
from callsheet.engines.speech import CosyVoice, LightTTS, SpeechRequest
from callsheet.errors import BadInput, HostFault, HostLacks, Transient
from callsheet.media.audio import check_speech
from tests.conftest import write_tone
from tests.fakes.proxy import Fault, FaultyProxy

TEXT = "The keeper lit the lamp at six and wrote one line."


@pytest.fixture
def proxy(draft_host: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(draft_host) as proxy:
        yield proxy


@pytest.fixture
def request_(tmp_path: Path) -> SpeechRequest:
    return SpeechRequest(TEXT, "a quiet line to speak like", write_tone(tmp_path / "p.wav", 4.0))


@pytest.mark.parametrize("kind", [CosyVoice, LightTTS])
@pytest.mark.parametrize("model", ["cosyvoice2", "cosyvoice3"])
async def test_what_is_spoken_passes_the_checks(
    draft_host: str, request_: SpeechRequest, tmp_path: Path, kind: type[CosyVoice], model: str
) -> None:
    async with kind(draft_host, name="draft", model=model) as server:  # type: ignore[arg-type]
        await server.ready()
        recording = await server.synthesize(request_)
    recording.save(tmp_path / "take.wav")
    checks = check_speech(tmp_path / "take.wav", text=TEXT, language="en", speed=1.0, sample_rate=24_000)
    assert [str(check) for check in checks if not check.ok] == []


async def test_lighttts_speaks_faster_when_asked(draft_host: str, request_: SpeechRequest) -> None:
    async with LightTTS(draft_host, name="draft") as server:
        slow = await server.synthesize(request_)
        fast = await server.synthesize(
            SpeechRequest(TEXT, request_.prompt_text, request_.prompt_audio, speed=1.5)
        )
    assert 0.6 < len(fast.pcm) / len(slow.pcm) < 0.8


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("cut", "the connection broke"),
        ("empty", "200 with an empty body"),
        ("reset", "the connection broke"),
        ("500", "answered 500: sorry"),
        ("502", "answered 502"),
    ],
)
async def test_broken_answers_are_transient_and_name_the_engine(
    proxy: FaultyProxy, request_: SpeechRequest, fault: Fault, told: str
) -> None:
    proxy.fail("/inference_zero_shot", fault)
    async with CosyVoice(proxy.url, name="a10-1/cosyvoice") as server:
        with pytest.raises(Transient) as caught:
            await server.synthesize(request_)
        assert "a10-1/cosyvoice" in str(caught.value)
        assert told in str(caught.value)
        assert (await server.synthesize(request_)).pcm, "the next try is answered"


async def test_host_that_hangs_is_given_up_in_time(
    proxy: FaultyProxy, request_: SpeechRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.003")
    proxy.fail("/inference_zero_shot", "hang")
    async with CosyVoice(proxy.url, name="a10-1/cosyvoice") as server:
        with pytest.raises(Transient, match=r"a10-1/cosyvoice: no answer in time"):
            await server.synthesize(request_)


async def test_nobody_there_is_unreachable(request_: SpeechRequest) -> None:
    async with CosyVoice("http://127.0.0.1:9", name="gone/cosyvoice") as server:
        with pytest.raises(Unreachable, match="gone/cosyvoice: no connection"):
            await server.ready()
        with pytest.raises(Unreachable):
            await server.synthesize(request_)


async def test_another_server_is_not_taken_for_one(tmp_path: Path, draft_host: str) -> None:
    import http.server
    import threading

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"tts_models": []}')

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
