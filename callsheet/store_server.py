"""A folder store over HTTP, on this machine only, so that links in the Prefect UI open: players seek by Range requests.

    python -m callsheet.store_server out [PORT] [--with-parent]
    → {"url": "http://127.0.0.1:4201"}

It gives files and nothing else: it lists no folder but the reports of batches at ``/``, writes nothing, and never
leaves the folder, whatever a path or a link in it says. Other sites cannot read it through a browser (the Host must be ours).
"""

from __future__ import annotations

import asyncio
import html
import mimetypes
import sys
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from callsheet.serving import listen, serve

#: What Python does not know by itself everywhere.
_TYPES = {".vtt": "text/vtt", ".srt": "text/plain", ".wav": "audio/wav", ".mp4": "video/mp4"}


class StoreFiles(StaticFiles):
    """The files of a folder. Starlette looks that a path, its links followed, is inside, and answers Range."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, check_dir=False)

    async def get_response(self, path: str, scope: Scope) -> Response:
        if any(part.startswith(".") for part in Path(path).parts):
            raise HTTPException(status_code=404)  # locks, and files on their way
        response = await super().get_response(path, scope)
        # Files are replaced under their names; the ETag tells.
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response


def store_app(folder: Path) -> Starlette:
    """The application that serves ``folder``, which need not be there yet."""
    for ending, media_type in _TYPES.items():
        mimetypes.add_type(media_type, ending)
    root = folder.resolve()

    def index(_: Request) -> HTMLResponse:
        names = sorted(path.parent.name for path in root.glob("batches/*/report.html"))
        lines = "".join(
            f'<li><a href="batches/{quote(name)}/report.html">{html.escape(name)}</a></li>' for name in names
        )
        title = html.escape(f"Batches in {root}")
        return HTMLResponse(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<h1>{title}</h1><ul>{lines or '<li>none yet</li>'}</ul></html>"
        )

    return Starlette(
        routes=[Route("/", index), Mount("/", StoreFiles(root))],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def main(arguments: list[str]) -> None:
    with_parent = "--with-parent" in arguments
    folder, port, *_ = [*(one for one in arguments if not one.startswith("--")), "0"]
    asyncio.run(serve(store_app(Path(folder)), listen(int(port)), with_parent=with_parent))


if __name__ == "__main__":
    main(sys.argv[1:])
