"""What answers at an address: which of the engines' APIs, or why none; asked with questions that cost no GPU time.

    found = await probe("https://four-words.trycloudflare.com", SecretStr(os.environ["BOX_TOKEN"]))
    found.api                                  # "comfyui"
    found.details["devices"]                   # ["cuda:0 NVIDIA GeForce RTX 4090"]
    found.reason                               # "" or what a person is to do about it

For whoever has just rented a box, or copied an address from a console, and wonders what is wrong with it.
What is asked, and what the answer tells (facts of ComfyUI 1.1, of speech servers 1.1 and 1.2, of vast.ai 4;
SwarmUI's docs/API.md):

    GET  /system_stats            ComfyUI: its version and devices; also below /api
    GET  /prompt                  how much ComfyUI has to do. Not /queue: that sends the graph of every prompt.
    GET  /query_tts_model         LightTTS: its styles
    GET  /openapi.json            CosyVoice: the modes that it lists; the GPU service: /tts/generate
    GET  /health                  the GPU service: its device and models. LightTTS speaks a sentence for it, so it is
                                  asked of a server alone that has said to be no LightTTS.
    POST /API/GetNewSession {}    SwarmUI: its version. It opens a session, so it is asked when nothing else fits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import httpx
from pydantic import SecretStr

from callsheet.engines.http import LEAST_CONNECT_SECONDS, check_token, open_client
from callsheet.errors import BadInput
from callsheet.timing import scaled

Api = Literal["comfyui", "cosyvoice", "lighttts", "gpu_service", "swarmui", "unknown", ""]
Detail = str | int | float | list[str] | list[float]

#: Of a longer answer nothing is read: these questions are answered in kilobytes, and the address may be anybody's.
LONGEST_ANSWER = 4 << 20
#: So much of what a stranger sends is repeated to the person who asked.
LONGEST_TEXT = 120
#: vast.ai's portal marks with it the page that it shows for an application that does not answer yet (facts, 4).
PLACEHOLDER = "X-Portal-Placeholder"
_GIB = 1 << 30
#: Statuses of a proxy that finds nothing behind it: those of HTTP, and Cloudflare's own, 530 for a tunnel that is gone.
_GATEWAY_FAULTS = frozenset({502, 503, 504, *range(520, 531)})
_NO_SUCH_ROUTE = frozenset({404, 405, 501})
_LOGIN = re.compile(r"log-?_?in|sign-?_?in|sso|auth|oauth2?|authorize", re.IGNORECASE)


@dataclass(frozen=True)
class Connection:
    """What was found at an address.

    Attributes:
        url: the address as it was asked, without a slash at its end.
        reachable: whether anything answered in HTTP.
        api: which API; ``unknown`` where another one answers, or a proxy in its place; empty where nothing does.
        details: what the server says of itself. ``also``: all APIs, where one address has several.
        reason: what is wrong and what helps; empty where nothing is.
    """

    url: str
    reachable: bool
    api: Api
    details: Mapping[str, Detail]
    reason: str

    @property
    def is_known(self) -> bool:
        """Whether something answers that is known by name."""
        return self.reachable and self.api not in ("", "unknown")


async def probe(
    url: str,
    token: SecretStr | None = None,
    *,
    timeout: float = 10,  # noqa: ASYNC109  of each question, not of the whole
) -> Connection:
    """Finds out what answers at ``url``. The token goes to that address alone: redirects are told, not followed.

    Args:
        timeout: seconds for a connection, and for each answer; CALLSHEET_TIME_SCALE stretches it.

    Raises:
        BadInput: the address is none, or holds what may be a secret; or no header can carry the token.
    """
    address = checked_address(url)
    if token is not None:
        check_token(token)
    async with open_client(address, token) as client:
        survey = _Survey(client, token, timeout)
        try:
            first = await survey.ask("/system_stats")
        except (httpx.HTTPError, TimeoutError) as fault:
            return Connection(address, False, "", {}, survey.why_no_answer(fault, httpx.URL(address)))
        if reason := _closed_door(first, httpx.URL(address), has_token=token is not None):
            return Connection(address, True, "unknown", {"status": first.status}, reason)
        await survey.ask_what_is_free()
        found = survey.found()
        if not found:
            await survey.ask_what_opens_a_session()
            found = survey.found()
        if not found:
            reason = survey.why_unknown(httpx.URL(address), has_token=token is not None)
            return Connection(address, True, "unknown", _of_stranger(first), reason)
    return _known(address, found)


def checked_address(url: str) -> str:
    """The address without fragment and closing slash.

    Raises:
        BadInput: with what would be right; it never repeats what may be a password or a token.
    """
    if "@" in url or "?" in url:
        raise BadInput(
            "the address: found a name with a password or a query in it, which is not repeated here; expected the bare address, "
            "as a secret in a URL ends in logs. Put the token into an environment variable and name that one with --token-env"
        )
    text = url.strip().partition("#")[0]
    shown = _printable(text)
    if "://" not in text:
        raise BadInput(f'found "{shown}"; expected http://{shown}, or https://{shown} where it is a tunnel')
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise BadInput(f'found "{shown}" ({error}); expected an address such as http://NAME:8188') from None
    has_good_port = parsed.port is None or 0 < parsed.port <= 65535
    if parsed.scheme not in ("http", "https") or not parsed.host or "%" in parsed.host or not has_good_port:
        raise BadInput(f'found "{shown}"; expected an address such as http://NAME:8188 or https://NAME')
    return str(parsed).rstrip("/")


# What a server answers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """One answer, read whole where it is not too long."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """Of the JSON object that it is; empty where it is none, or no success."""
        if not 200 <= self.status < 300 or PLACEHOLDER in self.headers:
            return {}
        try:
            read = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return read if isinstance(read, dict) else {}

    @property
    def is_page(self) -> bool:
        """Whether a web page came with success: what a server that shows every path the same page does."""
        is_html = "html" in self.headers.get("content-type", "") or self.body.lstrip()[:1] == b"<"
        return 200 <= self.status < 300 and is_html

    @property
    def title(self) -> str:
        """Of the page."""
        match = re.search(rb"<title[^>]*>(.*?)</title>", self.body[:100_000], re.IGNORECASE | re.DOTALL)
        return _printable(match[1].decode(errors="replace")) if match else ""


class _Survey:
    """The answers of one server, by path, and what they tell."""

    def __init__(self, client: httpx.AsyncClient, token: SecretStr | None, seconds: float) -> None:
        self._client = client
        self._secret = token.get_secret_value() if token is not None else ""
        self.read_seconds = scaled(seconds)
        self.connect_seconds = max(self.read_seconds, LEAST_CONNECT_SECONDS)
        self._limits = httpx.Timeout(self.read_seconds, connect=self.connect_seconds)
        #: Of an answer as a whole: a server that drips is given up too.
        self._whole = self.connect_seconds + self.read_seconds
        self._answers: dict[str, _Answer] = {}
        #: Whether a connection was begun in TLS: httpx calls both kinds of waiting one for a connection.
        self._began_tls = False

    async def _trace(self, event: str, _: object) -> None:
        self._began_tls = self._began_tls or event == "connection.start_tls.started"

    async def ask(self, path: str, *, post: bool = False) -> _Answer:
        """Raises httpx's errors and TimeoutError."""
        method = "POST" if post else "GET"
        content: dict[str, str] | None = {} if post else None
        traced = {"trace": self._trace}
        async with asyncio.timeout(self._whole):
            async with self._client.stream(
                method, path, json=content, timeout=self._limits, extensions=traced
            ) as answer:
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > LONGEST_ANSWER:
                        body.clear()
                        break
        self._answers[path] = self._without_token(answer, bytes(body))
        return self._answers[path]

    def _without_token(self, answer: httpx.Response, body: bytes) -> _Answer:
        """A server may show what it was asked with, and what it sends is repeated to a person."""
        if not self._secret:
            return _Answer(answer.status_code, answer.headers, body)
        headers = {name: text.replace(self._secret, "***") for name, text in answer.headers.items()}
        return _Answer(
            answer.status_code, httpx.Headers(headers), body.replace(self._secret.encode(), b"***")
        )

    async def _ask_all(self, *paths: str, post: bool = False) -> None:
        """A question without an answer tells nothing: the first one was answered, so the server is there."""

        async def ask(path: str) -> None:
            with contextlib.suppress(httpx.HTTPError, TimeoutError):
                await self.ask(path, post=post)

        await asyncio.gather(*(ask(path) for path in paths))

    async def ask_what_is_free(self) -> None:
        """What changes nothing and costs nothing, whatever the server is."""
        await self._ask_all("/api/system_stats", "/openapi.json", "/query_tts_model")
        if (below := self._below()) is not None:
            await self._ask_all(f"{below}/prompt")
        speech = self._answers.get("/query_tts_model")
        if set(self.found()) <= {"gpu_service"} and speech and speech.status in _NO_SUCH_ROUTE:
            await self._ask_all("/health")

    async def ask_what_opens_a_session(self) -> None:
        await self._ask_all("/API/GetNewSession", post=True)

    def found(self) -> dict[Api, dict[str, Detail]]:
        """Every API that the answers tell, with what is known of it. Each of them is told by something of its own."""
        told: dict[Api, dict[str, Detail] | None] = {
            "comfyui": self._comfyui(),
            "cosyvoice": self._cosyvoice(),
            "lighttts": self._lighttts(),
            "gpu_service": self._gpu_service(),
            "swarmui": self._swarmui(),
        }
        return {api: details for api, details in told.items() if details is not None}

    def why_no_answer(self, fault: Exception, asked: httpx.URL) -> str:
        """Why the first question got no answer."""
        if isinstance(fault, httpx.ConnectTimeout) and self._began_tls:
            return (
                f"accepts the connection, but does not answer in TLS within {self.connect_seconds:g} s: "
                f"perhaps it speaks plain HTTP, {asked.copy_with(scheme='http')}"
            )
        if isinstance(fault, httpx.ConnectTimeout):
            return f"no connection within {self.connect_seconds:g} s: a firewall, or the machine is down"
        if isinstance(fault, httpx.TimeoutException | TimeoutError):
            return f"accepts the connection, but does not answer within {self.read_seconds:g} s: it is busy, or hangs"
        return _broken(fault, asked)

    def why_unknown(self, asked: httpx.URL, *, has_token: bool) -> str:
        """Why no answer was that of an API."""
        for answer in self._answers.values():
            if reason := _closed_door(answer, asked, has_token=has_token):
                return reason
        page = next((answer for answer in self._answers.values() if answer.is_page), None)
        if page:
            titled = f' with the title "{page.title}"' if page.title else ""
            return f"answers with a web page{titled} where JSON was expected: is this another program's port, or a page around the API?"
        told = ", ".join(f"{path} {answer.status}" for path, answer in self._answers.items())
        return (
            f"something answers, but neither ComfyUI, CosyVoice, LightTTS, a GPU service nor SwarmUI ({told})"
        )

    def _fields(self, path: str) -> dict[str, Any]:
        answer = self._answers.get(path)
        return answer.fields if answer else {}

    def _below(self) -> str | None:
        """Below which path ComfyUI has its API; None where there is no ComfyUI."""
        for below in ("", "/api"):
            stats = self._fields(f"{below}/system_stats")
            if isinstance(stats.get("devices"), list) and isinstance(stats.get("system"), dict):
                return below
        return None

    def _comfyui(self) -> dict[str, Detail] | None:
        below = self._below()
        if below is None:
            return None
        stats = self._fields(f"{below}/system_stats")
        devices = [device for device in stats["devices"] if isinstance(device, dict)]
        details: dict[str, Detail] = {"version": _printable(stats["system"].get("comfyui_version", ""))}
        details["devices"] = [_printable(device.get("name", "")) for device in devices]
        details["vram_gib"] = [_gib(device.get("vram_total")) for device in devices]
        details["vram_free_gib"] = [_gib(device.get("vram_free")) for device in devices]
        load = self._fields(f"{below}/prompt").get("exec_info")
        remaining = load.get("queue_remaining") if isinstance(load, dict) else None
        if isinstance(remaining, int):
            details["queued"] = remaining
        return details | ({"below": below} if below else {})

    def _cosyvoice(self) -> dict[str, Detail] | None:
        """LightTTS lists /inference_zero_shot too, and no other mode."""
        paths = self._paths()
        modes = [path.removeprefix("/inference_") for path in paths if path.startswith("/inference_")]
        if not modes or (modes == ["zero_shot"] and "/query_tts_model" in paths):
            return None
        return {"modes": [_printable(mode) for mode in modes]}

    def _lighttts(self) -> dict[str, Detail] | None:
        styles = self._fields("/query_tts_model").get("tts_models")
        return {"styles": [_printable(style) for style in styles]} if isinstance(styles, list) else None

    def _gpu_service(self) -> dict[str, Detail] | None:
        health = self._fields("/health")
        models = health.get("models")
        if "device" in health and isinstance(models, dict):
            loaded = [_printable(name) for name, is_loaded in models.items() if is_loaded]
            said = {name: _printable(health.get(name, "")) for name in ("status", "device")}
            return {**said, "models": loaded}
        return {} if "/tts/generate" in self._paths() else None

    def _swarmui(self) -> dict[str, Detail] | None:
        """The session id is a key to the server: it is not shown."""
        session = self._fields("/API/GetNewSession")
        if "session_id" in session and "version" in session:
            return {"version": _printable(session["version"])}
        # What it answers where it wants an account (BasicAPIFeatures.cs).
        return {} if session.get("error") == "Invalid or unauthorized." else None

    def _paths(self) -> list[str]:
        paths = self._fields("/openapi.json").get("paths")
        return list(paths) if isinstance(paths, dict) else []


def _known(address: str, found: dict[Api, dict[str, Detail]]) -> Connection:
    """Several APIs at one address are a GPU service, as the draft host is."""
    details: dict[str, Detail] = {name: value for told in found.values() for name, value in told.items()}
    reason = ""
    if details.get("below"):
        reason = f"its API lies below {details['below']}: {address}{details['below']} is the address to use"
    elif found.get("swarmui") == {}:
        reason = "SwarmUI wants the token of an account, in a cookie that is not sent from here"
    elif found.get("lighttts", {}).get("styles") == []:
        reason = "LightTTS lists no style: it has no model"
    elif details.get("status", "healthy") != "healthy":
        reason = f'the GPU service says of itself "{details["status"]}"'
    if len(found) == 1:
        return Connection(address, True, next(iter(found)), details, reason)
    return Connection(address, True, "gpu_service", {"also": list(map(str, found)), **details}, reason)


def _of_stranger(answer: _Answer) -> dict[str, Detail]:
    """What may help to tell who it is."""
    details: dict[str, Detail] = {"status": answer.status}
    if server := _printable(answer.headers.get("server", "")):
        details["server"] = server
    return details


# Why there is no answer, or none of the engine's ----------------------------------------------------


def _closed_door(answer: _Answer, asked: httpx.URL, *, has_token: bool) -> str:
    """Why the engine was not asked at all: somebody before it answered. Empty where that is not so."""
    status = answer.status
    if PLACEHOLDER in answer.headers:
        return "vast.ai's portal answers, the engine behind it is not up yet"
    if status in (401, 403, 407):
        what = "refuses the token" if has_token else "wants a token: name its variable with --token-env"
        return f"{what} (answered {status} {_phrase(status)})"
    if status in _GATEWAY_FAULTS:
        return f"a proxy or tunnel answers, the engine behind it does not ({status} {_phrase(status)}): it is not up yet, or gone"
    if status == HTTPStatus.BAD_REQUEST and asked.scheme == "http" and b"HTTPS" in answer.body:
        return f"speaks TLS there: {asked.copy_with(scheme='https')} would be right"
    if 300 <= status < 400 and "location" in answer.headers:
        return _sent_away(answer.headers["location"], asked, has_token=has_token)
    return ""


def _sent_away(location: str, asked: httpx.URL, *, has_token: bool) -> str:
    """What a redirect says. Its query is never shown: that of a login page holds a signed state.

    Empty where it stays with the same server: SwarmUI sends every path that it does not have to /Error/404.
    """
    try:
        target = asked.join(location)
    except httpx.InvalidURL:
        return "sends to an address that is none"
    shown = _printable(str(target.copy_with(query=None, fragment=None, username=None, password=None)))
    if target.host.endswith(".cloudflareaccess.com") or target.path.startswith("/cdn-cgi/access/"):
        return f"Cloudflare Access wants a login ({shown}), which no token of --token-env replaces: use an address that it does not guard"
    if any(_LOGIN.fullmatch(part) for part in re.split(r"[/.]", target.path)):
        wants = (
            "in spite of the token" if has_token else "it wants a token: name its variable with --token-env"
        )
        return f"sends to a page where one logs in ({shown}); {wants}"
    if (target.scheme, target.host) == ("https", asked.host) and asked.scheme == "http":
        return f"sends to https: {asked.copy_with(scheme='https', port=target.port)} would be right"
    if (target.scheme, target.netloc) != (asked.scheme, asked.netloc):
        return f"sends to another server, {shown}, which is not followed: give that address, if it is yours"
    return ""


def _broken(fault: Exception, asked: httpx.URL) -> str:
    """Why there is no connection, or none that lasts, told by the innermost of the errors, which is the system's."""
    for cause in _causes(fault):
        match cause:
            case socket.gaierror():
                return (
                    f"the name {asked.host} was not found: it is misspelt, or the tunnel or machine is gone"
                )
            case ssl.SSLCertVerificationError():
                return (
                    f"TLS: the certificate is not valid for {asked.host} ({_printable(cause.verify_message)})"
                )
            case ssl.SSLError():
                return f"TLS failed ({_printable(cause.reason or cause)}): perhaps it speaks plain HTTP, {asked.copy_with(scheme='http')}"
            case ConnectionRefusedError():
                return "connection refused: the machine answers, but nothing listens there yet"
            case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH):
                return "there is no way to that machine from here: it is down, or this machine has no network"
            case httpx.ProxyError():
                return f"the proxy of this machine does not let it through ({_printable(cause)})"
    return f"the connection broke ({type(fault).__name__}): another protocol than HTTP, or a server that ends"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error's causes, the innermost first, and the error itself. Happy eyeballs gives one for each address."""
    if error is not None:
        yield from _causes(error.__cause__ or error.__context__)
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _causes(one)
        yield error


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "of Cloudflare"


def _gib(size: object) -> float:
    return round(size / _GIB, 1) if isinstance(size, int | float) and 0 <= size < 1 << 60 else 0.0


def _printable(text: object) -> str:
    """What a stranger sent, on one line, without what would steer a terminal."""
    one_line = " ".join(str(text).split())
    return "".join(letter for letter in one_line if letter.isprintable())[:LONGEST_TEXT]
