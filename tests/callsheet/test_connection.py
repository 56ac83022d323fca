"""What answers at an address, asked of real sockets: engines, their proxies, and what is neither."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from callsheet.connection import Connection, probe
from callsheet.errors import BadInput
from callsheet.serving import listen, url_of
from callsheet.workflow import Workflow
from tests.conftest import ROOT
from tests.fakes.background import BackgroundServer
from tests.fakes.comfyui_server import ComfyUIServer
from tests.fakes.speech_server import SpeechServer

CALLSHEET = str(Path(sys.executable).with_name("callsheet"))
TOKEN = "0e9c-not-to-be-shown"
STATS = {
    "system": {"comfyui_version": "0.38.1"},
    "devices": [{"name": "cuda:0 NVIDIA GeForce RTX 4090", "vram_total": 25_250_627_584, "vram_free": 8 << 30}],
}  # fmt: skip
Answer = tuple[int, Mapping[str, str], bytes]


def as_json(content: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def as_page(content: str, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "text/html", **headers}, content.encode()


def sent_to(location: str) -> Answer:
    return 302, {"Location": location}, b""


class StandIn(BackgroundServer):
    """Answers each path as it is told to, and every other one with ``otherwise``; None hangs."""

    def __init__(
        self,
        answers: Mapping[str, Answer | None] | None = None,
        otherwise: Answer | None = (404, {}, b'{"detail":"Not Found"}'),
    ) -> None:
        self._answers = answers or {}
        self._otherwise = otherwise
        self.requests: list[str] = []
        super().__init__()

    @property
    def asked(self) -> list[str]:
        """Methods and paths."""
        return [request.partition(" HTTP")[0] for request in self.requests]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            answer = self._answers.get(head.split()[1], self._otherwise)
            if answer is None:
                await asyncio.Event().wait()
                return
            status, headers, body = answer
            lines = [f"HTTP/1.1 {status} So", *(f"{name}: {text}" for name, text in headers.items())]
            lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
            writer.write("\r\n".join(lines).encode() + body)
            await writer.drain()
        writer.close()


async def answered_by(stand_in: StandIn, token: str = "", timeout: float = 10) -> Connection:
    with stand_in:
        return await probe(stand_in.url, SecretStr(token) if token else None, timeout=timeout)


# The APIs -------------------------------------------------------------------------------------------


async def test_the_draft_host_is_a_service_with_three_apis(draft_host: str) -> None:
    found = await probe(f"{draft_host}/")
    assert (found.url, found.reachable, found.api, found.reason) == (draft_host, True, "gpu_service", "")
    assert found.details["also"] == ["comfyui", "cosyvoice", "lighttts"]
    assert found.details["styles"] == ["draft"]
    assert found.details["queued"] == 0


async def test_comfyui_says_what_it_is_and_is_given_nothing_to_do(workflows: dict[str, Workflow]) -> None:
    with ComfyUIServer(workflows) as server:
        found = await probe(server.url)
        assert (found.api, found.is_known, found.reason) == ("comfyui", True, "")
        assert found.details["version"] == "0.3.64"
        assert found.details["devices"] == ["draft (no GPU)"]
        assert {line.split()[0] for line in server.requests} == {"GET"}


async def test_comfyui_below_api_is_found_and_its_address_told() -> None:
    answers = {
        "/api/system_stats": as_json(STATS),
        "/api/prompt": as_json({"exec_info": {"queue_remaining": 3}}),
    }
    found = await answered_by(StandIn(answers, as_page("<html>the workflow editor</html>")))
    assert found.api == "comfyui"
    assert found.details["devices"] == ["cuda:0 NVIDIA GeForce RTX 4090"]
    assert found.details["vram_gib"] == [23.5]
    assert found.details["vram_free_gib"] == [8.0]
    assert found.details["queued"] == 3
    assert f"{found.url}/api is the address" in found.reason


async def test_a_port_that_speaks_two_speech_protocols_names_both() -> None:
    with SpeechServer(styles=("default", "calm")) as server:
        found = await probe(server.url)
        assert server.requests == [], "it was asked to speak"
    assert found.details["also"] == ["cosyvoice", "lighttts"]
    assert found.details["modes"] == ["zero_shot", "cross_lingual", "instruct2"]
    assert found.details["styles"] == ["default", "calm"]


async def test_cosyvoice_is_told_by_the_modes_that_it_lists() -> None:
    paths = {"/inference_sft": {}, "/inference_zero_shot": {}}
    found = await answered_by(StandIn({"/openapi.json": as_json({"paths": paths})}))
    assert (found.api, found.details) == ("cosyvoice", {"modes": ["sft", "zero_shot"]})


@pytest.fixture
def light_tts(tmp_path: Path) -> Iterator[str]:
    """The address of the stand-in for LightTTS, which writes down what it is asked."""
    with listen() as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "light_tts.server.api_server", "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests/fakes"), "FAKE_RECORD": str(tmp_path / "record")},
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


async def test_lighttts_lists_its_styles_and_is_not_made_to_speak(light_tts: str, tmp_path: Path) -> None:
    found = await probe(light_tts)
    assert (found.api, found.details, found.reason) == ("lighttts", {"styles": ["cosyvoice"]}, "")
    asked = [json.loads(line).get("asked") for line in (tmp_path / "record").read_text().splitlines()]
    assert "/query_tts_model" in asked
    assert not {"/health", "/healthz"} & set(asked), "each of them speaks a sentence"


async def test_lighttts_is_not_taken_for_cosyvoice() -> None:
    paths = {"/health": {}, "/inference_zero_shot": {}, "/query_tts_model": {}}
    stand_in = StandIn(
        {
            "/openapi.json": as_json({"paths": paths}),
            "/query_tts_model": as_json({"tts_models": ["CosyVoice2-0.5B"]}),
        }
    )
    found = await answered_by(stand_in)
    assert (found.api, found.details) == ("lighttts", {"styles": ["CosyVoice2-0.5B"]})
    assert "GET /health" not in stand_in.asked


async def test_a_server_that_does_not_say_whether_it_is_lighttts_is_not_asked_for_its_health() -> None:
    stand_in = StandIn({"/query_tts_model": (500, {}, b""), "/health": as_json({"message": "Ok"})})
    assert (await answered_by(stand_in)).api == "unknown"
    assert "GET /health" not in stand_in.asked


HEALTH = {
    "status": "healthy",
    "device": "mps",
    "capabilities": {"mps": True, "cuda": False},
    "models": {"tts": True, "video": False, "lipsync": False},
}


@pytest.mark.parametrize("lists_its_routes", [True, False])
async def test_the_gpu_service_says_its_device_and_models(lists_its_routes: bool) -> None:
    answers = {"/health": as_json(HEALTH)}
    if lists_its_routes:
        answers["/openapi.json"] = as_json({"paths": {"/health": {}, "/tts/generate": {}}})
    found = await answered_by(StandIn(answers))
    assert found.api == "gpu_service"
    assert found.details == {"status": "healthy", "device": "mps", "models": ["tts"]}


SESSION = {"session_id": "9D3534E30DA3", "user_id": "local", "version": "0.9.7.GIT-5ee406ba"}


async def test_swarmui_is_known_by_its_session_which_is_not_shown() -> None:
    stand_in = StandIn({"/API/GetNewSession": as_json(SESSION)}, otherwise=sent_to("/Error/404"))
    found = await answered_by(stand_in)
    assert (found.api, found.details, found.reason) == ("swarmui", {"version": "0.9.7.GIT-5ee406ba"}, "")
    post = next(request for request in stand_in.requests if request.startswith("POST"))
    assert "application/json" in post, "SwarmUI refuses others"


async def test_swarmui_that_wants_an_account_says_so() -> None:
    answers = {"/API/GetNewSession": as_json({"error": "Invalid or unauthorized."})}
    found = await answered_by(StandIn(answers))
    assert found.api == "swarmui"
    assert "wants the token of an account" in found.reason


# Something before the engine ------------------------------------------------------------------------


async def test_a_token_is_asked_for_refused_and_taken(workflows: dict[str, Workflow]) -> None:
    with ComfyUIServer(workflows, token=TOKEN) as server:
        without, wrong, right = [
            await probe(server.url, token) for token in (None, SecretStr("another"), SecretStr(TOKEN))
        ]
    assert (without.reachable, without.api) == (True, "unknown")
    assert "wants a token: name its variable with --token-env" in without.reason
    assert (wrong.reachable, wrong.api) == (True, "unknown")
    assert "refuses the token" in wrong.reason
    assert right.api == "comfyui"
    assert TOKEN not in repr((without, wrong, right))


@pytest.mark.parametrize("status", [200, 502, 503, 504])
async def test_the_portal_of_vast_is_not_the_engine(status: int) -> None:
    page = as_page("<html>starting</html>", status, **{"X-Portal-Placeholder": "true"})
    found = await answered_by(StandIn(otherwise=page))
    assert (found.reachable, found.is_known) == (True, False)
    assert found.reason == "vast.ai's portal answers, the engine behind it is not up yet"


@pytest.mark.parametrize("status", [502, 504, 530])
async def test_a_proxy_with_nothing_behind_it_is_told(status: int) -> None:
    found = await answered_by(StandIn(otherwise=as_page("<html>Bad Gateway</html>", status)))
    assert (found.reachable, found.api) == (True, "unknown")
    assert "a proxy or tunnel answers, the engine behind it does not" in found.reason


async def test_cloudflare_access_is_told_without_what_its_address_holds() -> None:
    login = "https://team.cloudflareaccess.com/cdn-cgi/access/login/gpu.example.com?meta=signed-state"
    found = await answered_by(StandIn(otherwise=sent_to(login)), TOKEN)
    assert "Cloudflare Access wants a login" in found.reason
    assert "team.cloudflareaccess.com" in found.reason
    assert "signed-state" not in repr(found)


@pytest.mark.parametrize(("token", "says"), [("", "it wants a token"), (TOKEN, "in spite of the token")])
async def test_a_login_page_is_told(token: str, says: str) -> None:
    found = await answered_by(StandIn(otherwise=sent_to("/login?next=%2Fsystem_stats")), token)
    assert "sends to a page where one logs in" in found.reason
    assert says in found.reason


async def test_a_token_does_not_follow_to_another_server() -> None:
    with StandIn({"/system_stats": as_json(STATS)}) as other:
        stand_in = StandIn(otherwise=sent_to(f"{other.url}/system_stats"))
        found = await answered_by(stand_in, TOKEN)
        assert other.requests == []
    assert (found.reachable, found.api) == (True, "unknown")
    assert f"sends to another server, {other.url}/system_stats, which is not followed" in found.reason
    assert TOKEN in stand_in.requests[0]


async def test_a_server_that_wants_https_is_told_with_the_right_address() -> None:
    stand_in = StandIn()
    stand_in._otherwise = sent_to(stand_in.url.replace("http://", "https://") + "/system_stats")
    found = await answered_by(stand_in)
    assert f"{found.url.replace('http://', 'https://')} would be right" in found.reason


async def test_plain_http_to_a_tls_port_is_told() -> None:
    refusal = (400, {}, b"Client sent an HTTP request to an HTTPS server.\n")
    assert "speaks TLS there: https://127.0.0.1" in (await answered_by(StandIn(otherwise=refusal))).reason


# Something else -------------------------------------------------------------------------------------


async def test_a_web_page_where_json_was_expected_is_told_by_its_title() -> None:
    page = as_page("<html><title>Jupyter\x1b[31m Server\n</title></html>")
    found = await answered_by(StandIn(otherwise=page))
    assert (found.reachable, found.api) == (True, "unknown")
    assert 'a web page with the title "Jupyter[31m Server" where JSON was expected' in found.reason


@pytest.mark.parametrize(
    "answer",
    [
        as_json({"devices": "none"}),
        as_json([1]),
        as_json("x", 500),
        (200, {}, b"[" * 100_000),
        (200, {}, b" " * (6 << 20)),
    ],
    ids=["other JSON", "a list", "an error", "JSON without end", "very long"],
)
async def test_something_unknown_is_unknown_with_what_it_answered(answer: Answer) -> None:
    found = await answered_by(StandIn(otherwise=answer))
    assert (found.reachable, found.api) == (True, "unknown")
    assert "something answers, but neither ComfyUI" in found.reason
    assert f"/system_stats {answer[0]}" in found.reason


async def test_a_page_that_shows_what_it_was_asked_with_shows_no_token() -> None:
    page = as_page(f"<html><title>Bearer {TOKEN}</title></html>", Server=f"debug {TOKEN}")
    found = await answered_by(StandIn(otherwise=page), TOKEN)
    assert 'the title "Bearer ***"' in found.reason
    assert TOKEN not in repr(found)


# Nothing there --------------------------------------------------------------------------------------


async def test_a_refused_connection_is_told() -> None:
    with listen() as taken:
        url = url_of(taken)
    found = await probe(url)
    assert (found.reachable, found.api, found.details) == (False, "", {})
    assert "the machine answers, but nothing listens there yet" in found.reason


async def test_a_name_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = await probe("http://four-words.invalid:8188")
    assert found.reachable is False
    assert "the name four-words.invalid was not found" in found.reason


@pytest.mark.slow
async def test_a_machine_that_takes_no_connection_is_told_from_one_that_takes_it_and_is_silent() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(StandIn())  # waits for the end of a head; what TLS begins with has none
        firewalled = stack.enter_context(socket.socket())
        firewalled.bind(("127.0.0.1", 0))
        firewalled.listen(0)
        for _ in range(3):  # more than its queue holds: to the next one the system does not answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(firewalled.getsockname())
        down, silent = await asyncio.gather(
            probe(url_of(firewalled), timeout=0.1),
            probe(server.url.replace("http://", "https://"), timeout=0.1),
        )
    assert (down.reachable, silent.reachable) == (False, False)
    assert "no connection within 2 s: a firewall, or the machine is down" in down.reason
    assert "accepts the connection, but does not answer in TLS within 2 s" in silent.reason
    assert f"perhaps it speaks plain HTTP, {server.url}" in silent.reason


async def test_a_server_that_hangs_is_told() -> None:
    found = await answered_by(StandIn(otherwise=None), timeout=0.3)
    assert found.reachable is False
    assert "accepts the connection, but does not answer within 0.3 s" in found.reason


async def test_a_route_that_hangs_does_not_hide_the_engine() -> None:
    stand_in = StandIn({"/system_stats": as_json(STATS), "/openapi.json": None, "/prompt": None})
    found = await answered_by(stand_in, timeout=0.3)
    assert found.api == "comfyui"
    assert "queued" not in found.details


async def test_a_server_that_speaks_no_http_is_told() -> None:
    class Mail(BackgroundServer):
        async def _connected(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example.com ESMTP\r\n")
            writer.close()

    with Mail() as server:
        found = await probe(server.url)
    assert found.reachable is False
    assert "another protocol than HTTP" in found.reason


async def test_tls_to_a_server_without_it_is_told(draft_host: str) -> None:
    found = await probe(draft_host.replace("http://", "https://"))
    assert found.reachable is False
    assert found.reason.startswith("TLS failed")
    assert f"perhaps it speaks plain HTTP, {draft_host}" in found.reason


async def test_a_certificate_that_nobody_vouches_for_is_told(tmp_path: Path) -> None:
    with self_signed(tmp_path) as url:
        found = await probe(url)
    assert found.reachable is False
    assert "TLS: the certificate is not valid for 127.0.0.1 (self-signed certificate)" in found.reason


@contextlib.contextmanager
def self_signed(folder: Path) -> Iterator[str]:
    """A TLS server with a certificate of its own making, as vast.ai's images have where their authority is not reached."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + signed.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(listener, server_side=True) as secure:
            secure.accept()

    with listen() as listener:
        url = url_of(listener).replace("http://", "https://")
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield url
        thread.join(timeout=5)


# What is given --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://vastai:hunter2@127.0.0.1:8188",
        "http://vastai:hun/ter2@127.0.0.1:8188",
        "http://vastai:hun#ter2@127.0.0.1",
        "vastai:hunter2@127.0.0.1",
        "http://127.0.0.1:8188/?token=hunter2",
        "http://127.0.0.1:8188/?mail=a@b&token=hunter2",
        "http://127.0.0.1:8188/#/?token=hunter2",
    ],
)
async def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadInput, match="--token-env") as refused:
        await probe(url)
    for part in ("vastai", "hunter2", "hun", "ter2"):
        assert part not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8188", "expected http://127.0.0.1:8188, or https://127.0.0.1:8188"),
        ("four-words.trycloudflare.com", "or https://four-words.trycloudflare.com"),
        ("ws://127.0.0.1:8188", 'found "ws://127.0.0.1:8188"'),
        ("http://", "expected an address such as"),
        ("http://my box:8188", 'found "http://my box:8188"'),
        ("http://box:99999", 'found "http://box:99999"'),
        ("http://box:port", 'found "http://box:port"'),
        ("", "expected"),
    ],
)
async def test_an_address_that_is_none_is_refused_with_what_would_be_right(url: str, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        await probe(url)
    assert says in str(refused.value)


async def test_a_fragment_that_a_browser_added_does_no_harm(draft_host: str) -> None:
    assert (await probe(f" {draft_host}/#3f2a ")).url == draft_host


@pytest.mark.parametrize("token", ["", "two words", f"{TOKEN}\n", f"{TOKEN}ü"])
async def test_a_token_that_no_header_can_carry_is_refused_and_not_repeated(token: str) -> None:
    with StandIn() as server, pytest.raises(BadInput, match="the token is empty, or holds") as refused:
        await probe(server.url, SecretStr(token))
    assert TOKEN not in str(refused.value)
    assert server.requests == []


# The command ----------------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CALLSHEET, "test-connection", *arguments],
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_says_what_answers_and_ends_with_0(draft_host: str) -> None:
    told = run(draft_host)
    assert told.returncode == 0, told.stderr
    assert "Reachable: yes\nAPI: gpu_service\n" in told.stdout
    assert "comfyui, cosyvoice, lighttts" in told.stdout
    assert "Reason" not in told.stdout


def test_the_command_says_why_nothing_answers_and_ends_with_1() -> None:
    with listen() as taken:
        url = url_of(taken)
    told = run(url)
    assert told.returncode == 1
    assert "Reachable: no\nAPI: none\nReason: connection refused: the machine answers" in told.stdout


def test_the_last_line_is_json_and_the_token_is_in_no_line(workflows: dict[str, Workflow]) -> None:
    with ComfyUIServer(workflows, token=TOKEN) as server:
        right = run(server.url, "--token-env", "BOX_TOKEN", "--json", BOX_TOKEN=TOKEN)
        wrong = run(server.url, "--token-env", "BOX_TOKEN", "--json", BOX_TOKEN=f"x{TOKEN}")
    found = json.loads(right.stdout.splitlines()[-1])
    assert (right.returncode, wrong.returncode) == (0, 1)
    assert list(found) == ["url", "reachable", "api_type", "details", "reason"]
    assert (found["url"], found["reachable"], found["api_type"]) == (server.url, True, "comfyui")
    assert "refuses the token" in json.loads(wrong.stdout.splitlines()[-1])["reason"]
    assert TOKEN not in right.stdout + right.stderr + wrong.stdout + wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["http://box:8188/?token=hunter2"], ["http://box:8188", "--token-env", "hunter2"]],
)
def test_bad_input_ends_with_2_and_repeats_no_secret(arguments: list[str]) -> None:
    told = run(*arguments)
    assert told.returncode == 2
    assert "expected" in told.stderr
    assert "hunter2" not in told.stdout + told.stderr
