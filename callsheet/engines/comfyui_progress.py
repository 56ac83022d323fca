"""ComfyUI's websocket: it hastens the next look at the history, and says how far a prompt is.

    feed = ProgressFeed("http://127.0.0.1:8188", headers={}, params={})
    feed.start()
    with feed.watching(prompt_id) as watch:
        await watch.news(seconds=2.0)      # back at once when something happens, else after 2 s
    await feed.close()

Nothing depends on it: sockets go silent while prompts succeed, lose their messages after a reconnect with
the same client id, and stall behind another client's (facts, 1.3). So each connection has a fresh client id,
and a socket that is dead, silent or refused costs nothing but the haste.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidURI, WebSocketException

from callsheet.timing import scaled

#: Between two connections, in seconds, doubling.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: The server sends no heartbeat of its own.
PING_SECONDS = 20.0
#: After these the history is worth a look at once.
_OVER = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class Watch:
    """What the socket said of one prompt.

    Attributes:
        fraction: how far the node that runs is, 0 to 1.
        moved: when something of it moved last (monotonic seconds); None before it said anything, and
            after the connection broke, because a prompt's messages go to the connection it was submitted on.
    """

    fraction: float = 0.0
    moved: float | None = None
    _place: Any = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def news(self, seconds: float) -> None:
        """Waits until the prompt may be over, for at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        self._news.clear()

    def note(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Takes in one message."""
        place = (kind, detail.get("node"), detail.get("value"), _states(detail.get("nodes")))
        if place != self._place:
            self._place, self.moved = place, time.monotonic()
        if kind == "progress" and detail.get("max"):
            self.fraction = float(detail.get("value", 0)) / float(detail["max"])
        if kind in _OVER or (kind == "executing" and detail.get("node") is None):
            self._news.set()


class ProgressFeed:
    """One server's socket, connected anew whenever it breaks."""

    def __init__(self, url: str, *, headers: Mapping[str, str], params: Mapping[str, str]) -> None:
        self._address = "ws" + url.rstrip("/").removeprefix("http")
        self._headers, self._params = dict(headers), dict(params)
        self._watches: dict[str, Watch] = {}
        self._task: asyncio.Task[None] | None = None
        #: When a frame came last, of whatever prompt: a socket that is silent altogether says nothing of one.
        self._heard: float = 0.0
        #: What prompts are submitted with, so that their messages come here.
        self.client_id = uuid.uuid4().hex

    def start(self) -> None:
        """Connects in the background; once."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @contextlib.contextmanager
    def watching(self, prompt_id: str) -> Iterator[Watch]:
        """What the socket says of a prompt, while the block lasts."""
        self._watches[prompt_id] = watch = Watch()
        try:
            yield watch
        finally:
            self._watches.pop(prompt_id, None)

    def quiet_seconds(self, watch: Watch) -> float:
        """For how long the server, which goes on sending, has sent nothing new of this prompt; 0 where it cannot be told."""
        return max(0.0, self._heard - watch.moved) if watch.moved is not None else 0.0

    async def _listen(self) -> None:
        pause = FIRST_PAUSE
        while True:
            # Never the same id twice: a server that still holds the old connection would drop the new one's messages.
            client_id = uuid.uuid4().hex
            query = urlencode({"clientId": client_id, **self._params})
            try:
                async with connect(
                    f"{self._address}/ws?{query}",
                    additional_headers=self._headers,
                    max_size=None,
                    ping_interval=PING_SECONDS,
                    ping_timeout=PING_SECONDS,
                    open_timeout=scaled(PING_SECONDS),
                    close_timeout=1.0,
                ) as socket:
                    self.client_id, pause = client_id, FIRST_PAUSE
                    async for message in socket:
                        self._hear(message)
            except (OSError, TimeoutError, WebSocketException, InvalidURI):
                pass  # HTTP is the truth
            for watch in self._watches.values():
                watch.moved = None
            await asyncio.sleep(scaled(pause))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _hear(self, message: str | bytes) -> None:
        """A frame; previews (binary), strangers' prompts and what is no message are passed over."""
        self._heard = time.monotonic()
        if isinstance(message, bytes):
            return
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            content = json.loads(message)
            detail = content.get("data") or {}
            if watch := self._watches.get(detail.get("prompt_id", "")):
                watch.note(str(content.get("type")), detail)


def _states(nodes: Any) -> tuple[Any, ...]:
    """The nodes that run, and where each is."""
    if not isinstance(nodes, dict):
        return ()
    return tuple(
        (name, node.get("state"), node.get("value")) for name, node in nodes.items() if isinstance(node, dict)
    )
