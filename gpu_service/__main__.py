"""Starts the draft host on 127.0.0.1 and prints its address as one line of JSON.

python -m gpu_service --draft --port 8000
{"url": "http://127.0.0.1:8000"}
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn

from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows
from gpu_service.app import draft_app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpu_service", description=__doc__)
    parser.add_argument("--draft", action="store_true", required=True, help="serve drafts: no GPU, no models")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one when not given")
    parser.add_argument(
        "--workflows",
        type=Path,
        default=SHIPPED_WORKFLOWS,
        help="folder of the workflows whose models it has",
    )
    parser.add_argument(
        "--with-parent",
        action="store_true",
        help="end when standard input closes, which it does when the parent dies",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="callsheet-draft-") as folder:
        asyncio.run(serve(options, Path(folder)))


async def serve(options: argparse.Namespace, folder: Path) -> None:
    """Serves until told to stop, by a signal or by the end of standard input."""
    app = draft_app(folder, read_workflows(options.workflows))
    listener = socket.create_server(("127.0.0.1", options.port))
    server = _AnnouncedServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    if options.with_parent:
        threading.Thread(target=_stop_with_parent, args=(server,), daemon=True).start()
    await server.serve(sockets=[listener])


class _AnnouncedServer(uvicorn.Server):
    """Prints its address once it accepts connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets and self.started:
            print(json.dumps({"url": f"http://127.0.0.1:{sockets[0].getsockname()[1]}"}), flush=True)


def _stop_with_parent(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
