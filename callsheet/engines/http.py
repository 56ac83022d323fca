"""What the clients of all engines share: an httpx client, and httpx's failures in our words.

async with open_client("http://127.0.0.1:8080", token=None) as client:
    with translated_faults("a10-1/lighttts"):
        answer = await client.get("/query_tts_model")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from pydantic import SecretStr

from callsheet.errors import BadInput, HostFault, Refused, Transient
from callsheet.fleet import TokenPlace
from callsheet.hiding import quiet_http_log, without
from callsheet.timing import scaled

#: A host that does not accept a connection within this is not there; it says nothing about slow work.
CONNECT_SECONDS = 10.0
#: Under any time scale: a busy machine, this one included, needs as much to take up a connection.
LEAST_CONNECT_SECONDS = 2.0
#: How long a server may take for a question that costs it nothing (models listed, queue, history).
ANSWER_SECONDS = 30.0


#: Where a request keeps the token that it shows, so that its answer can be read without it.
_TOKEN = "callsheet.token"  # noqa: S105  the name of a field


class Unreachable(Transient):
    """Nobody listens, or the name is unknown. Worth a retry; when that fails too, the host is at fault."""


def credentials(
    token: SecretStr | None, place: TokenPlace = "header", name: str = "token"
) -> tuple[dict[str, str], dict[str, str]]:
    """The headers and the query that show a token: as a bearer, in a cookie, or in the query, called ``name``.

    Raises:
        BadInput: no header may hold such a token.
    """
    if token is None:
        return {}, {}
    check_token(token)
    secret = token.get_secret_value()
    if place == "query":
        return {}, {name: secret}
    return {"Cookie": f"{name}={secret}"} if place == "cookie" else {"Authorization": f"Bearer {secret}"}, {}


def check_token(token: SecretStr) -> None:
    """Raises BadInput where no header may hold the token: httpx's own message about that repeats the header."""
    secret = token.get_secret_value()
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise BadInput(
            "the token is empty, or holds a blank, a line's end or a letter that no header may; expected it as it was given out"
        )


def open_client(
    url: str, token: SecretStr | None = None, place: TokenPlace = "header", name: str = "token"
) -> httpx.AsyncClient:
    """A client for the server at ``url``. A token goes into a header, or where the proxy before it wants it."""
    headers, params = credentials(token, place, name)
    quiet_http_log()

    async def note(request: httpx.Request) -> None:
        request.extensions[_TOKEN] = token.get_secret_value() if token is not None else ""

    return httpx.AsyncClient(
        base_url=url.rstrip("/"),
        headers=headers,
        params=params,
        timeout=waiting(ANSWER_SECONDS),
        event_hooks={"request": [note]},
    )


def text_of(answer: httpx.Response) -> str:
    """What a server answered, without the token that it was shown: servers and proxies that fail may repeat the request."""
    return without(answer.text, [answer.request.extensions.get(_TOKEN, "")])


def waiting(seconds: float) -> httpx.Timeout:
    """Time-outs of a request that works for long: ``seconds`` between two bytes, short to connect."""
    return httpx.Timeout(scaled(seconds), connect=max(scaled(CONNECT_SECONDS), LEAST_CONNECT_SECONDS))


@contextmanager
def translated_faults(engine: str) -> Iterator[None]:
    """Turns httpx's errors into Transient, Unreachable and BadInput, naming the engine and not the token."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Unreachable(f"{engine}: no connection ({str(error) or type(error).__name__})") from error
    except httpx.TimeoutException as error:
        raise Transient(f"{engine}: no answer in time ({type(error).__name__})") from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Transient(f"{engine}: the connection broke ({str(error) or type(error).__name__})") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise BadInput(f"{engine}: {error}") from error


async def refuse(engine: str, answer: httpx.Response) -> None:
    """Raises what a status other than 2xx means; the body's first 300 characters say why."""
    if answer.is_success:
        return
    await answer.aread()
    body = " ".join(text_of(answer).split())[:300]
    message = f"{engine}: answered {answer.status_code}" + (f": {body}" if body else "")
    if answer.is_redirect or answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        # A proxy that wants a token sends a page away to where one logs in.
        raise HostFault(f"{message} (is its token set?)")
    if answer.is_server_error or answer.status_code in (
        httpx.codes.REQUEST_TIMEOUT,
        httpx.codes.TOO_MANY_REQUESTS,
    ):
        raise Transient(message)
    raise Refused(message)
