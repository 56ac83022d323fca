"""A store over HTTP, on this machine only, so that links in the Prefect UI open: players seek by Range requests.

    python -m callsheet.store_server out [PORT] [--with-parent]
    → {"url": "http://127.0.0.1:4201"}

It gives files and nothing else: it lists no folder but the reports of batches at ``/``, writes nothing, and never
leaves the store, whatever a path or a link in it says. Other sites cannot read it through a browser (the Host must be ours).
Of a bucket (``r2://media/callsheet``) it hands on what it reads with the keys of its environment, so that a report that
nobody has published opens here, and the keys stay here.
"""

from __future__ import annotations

import asyncio
import html
import mimetypes
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from callsheet.manifest import LatestRun
from callsheet.serving import listen, serve
from callsheet.store import Store, open_store
from callsheet.timing import scaled

#: What Python does not know by itself everywhere.
_TYPES = {".vtt": "text/vtt", ".srt": "text/plain", ".wav": "audio/wav", ".mp4": "video/mp4"}


#: How long the address that an object is read under is good: until reading begins.
_SIGNED_SECONDS = 300
#: What of a request is handed on to a bucket, and what of its answer is handed back.
_ASKED = ("range", "if-range", "if-none-match")
_GIVEN = (
    "content-type", "content-length", "content-range", "content-disposition", "accept-ranges", "etag", "last-modified",
)  # fmt: skip


def _always(path: str) -> dict[str, str]:
    """What every answer says: files are replaced under their names (the ETag tells), and are what their type says.

    Data is for the report beside it alone: another site's page could load it as a script of its own and read it. Pictures and media,
    which no page can read, are shown by the Prefect UI on another port.
    """
    headers = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if path.endswith((".js", ".json")):
        headers["cross-origin-resource-policy"] = "same-origin"
    return headers


class StoreFiles(StaticFiles):
    """The files of a folder. Starlette looks that a path, its links followed, is inside, and answers Range."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, check_dir=False)

    async def get_response(self, path: str, scope: Scope) -> Response:
        if any(part.startswith(".") for part in Path(path).parts):
            raise HTTPException(status_code=404)  # locks, and files on their way
        response = await super().get_response(path, scope)
        # Files are replaced under their names; the ETag tells.
        response.headers.update(_always(path))
        return response


class BucketFiles:
    """The objects of a bucket, handed on as they come, a part of one where a part is asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.client = httpx.AsyncClient(timeout=scaled(60))

    async def give(self, request: Request) -> Response:
        path = request.path_params["path"]
        if any(part.startswith(".") for part in Path(path).parts):
            raise HTTPException(status_code=404)
        try:
            address = await asyncio.to_thread(self.store.signed, path, _SIGNED_SECONDS)
        except ValueError:
            raise HTTPException(status_code=404) from None
        asked = {name: request.headers[name] for name in _ASKED if name in request.headers}
        try:
            answer = await self.client.send(
                self.client.build_request("GET", address, headers={"accept-encoding": "identity", **asked}),
                stream=True,
            )
        except httpx.HTTPError:
            # Not what it says: the address that it names is signed.
            raise HTTPException(status_code=502, detail="the bucket does not answer") from None
        if answer.status_code >= 400:
            await answer.aclose()
            is_absent = answer.status_code in (403, 404)  # who may not list is told 403 of what is not there
            raise HTTPException(status_code=404 if is_absent else 502)
        given = {name: answer.headers[name] for name in _GIVEN if name in answer.headers}
        headers = {**given, **_always(path)}
        if request.method == "HEAD":
            await answer.aclose()
            return Response(status_code=answer.status_code, headers=headers)
        return StreamingResponse(
            answer.aiter_raw(),
            status_code=answer.status_code,
            headers=headers,
            background=BackgroundTask(answer.aclose),
        )


def store_app(setting: str) -> Starlette:
    """The application that serves a store: a folder, which need not be there yet, or ``r2://BUCKET/PREFIX``.

    Raises:
        BadInput: the environment lacks the bucket's keys.
    """
    for ending, media_type in _TYPES.items():
        mimetypes.add_type(media_type, ending)
    if setting.startswith("r2://"):
        store = open_store(setting)
        return _app(setting, partial(_latest, store), Route("/{path:path}", BucketFiles(store).give))
    root = Path(setting).resolve()
    return _app(str(root), partial(_reports, root), Mount("/", StoreFiles(root)))


def _reports(root: Path) -> list[str]:
    """The batches of a folder that have a report."""
    return sorted(path.parent.name for path in root.glob("batches/*/report.html"))


def _latest(store: Store) -> list[str]:
    """The latest batch of each script: a bucket is not listed whole for a page."""
    pointers = [file.path for file in store.list("latest/") if file.path.endswith(".json")]
    return sorted({LatestRun.model_validate_json(store.get(path)).batch for path in pointers})


def _app(where: str, batches: Callable[[], list[str]], files: BaseRoute) -> Starlette:
    def index(_: Request) -> HTMLResponse:
        names = batches()
        lines = "".join(
            f'<li><a href="batches/{quote(name)}/report.html">{html.escape(name)}</a></li>' for name in names
        )
        title = html.escape(f"Batches in {where}")
        return HTMLResponse(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<h1>{title}</h1><ul>{lines or '<li>none yet</li>'}</ul></html>"
        )

    return Starlette(
        routes=[Route("/", index), files],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def main(arguments: list[str]) -> None:
    with_parent = "--with-parent" in arguments
    setting, port, *_ = [*(one for one in arguments if not one.startswith("--")), "0"]
    asyncio.run(serve(store_app(setting), listen(int(port)), with_parent=with_parent))


if __name__ == "__main__":
    main(sys.argv[1:])
