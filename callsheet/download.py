"""Images that a script names by address: fetched when the script is read, so that their hash is in the plan.

    outcome = Downloads(Path("inputs")).fetch_all({"https://example.org/a.png"})
    outcome["https://example.org/a.png"].sha256

An address that cannot be read is a mistake of its row, found before anything is spent.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from callsheet.errors import BadInput
from callsheet.hiding import quiet_http_log
from callsheet.inputs import InputFile
from callsheet.timing import scaled

#: ComfyUI takes uploads of up to 100 MB (facts, 1.1), so a larger image could not be used anyway.
LARGEST = 100 << 20


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "callsheet" / "inputs"


@dataclass
class Downloads:
    """Fetches addresses into a folder, under names that are their content's hash."""

    folder: Path = field(default_factory=_cache_folder)
    at_once: int = 8

    @staticmethod
    def is_address(text: str) -> bool:
        return text.startswith(("http://", "https://"))

    def fetch_all(self, addresses: Iterable[str]) -> dict[str, InputFile | BadInput]:
        """Each address's file, or why there is none."""
        quiet_http_log()
        wanted = sorted(set(addresses))
        if not wanted:
            return {}
        with (
            ThreadPoolExecutor(self.at_once) as pool,
            httpx.Client(follow_redirects=True, timeout=scaled(20)) as client,
        ):
            return dict(
                zip(wanted, pool.map(lambda address: self._fetch(client, address), wanted), strict=True)
            )

    def _fetch(self, client: httpx.Client, address: str) -> InputFile | BadInput:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{uuid.uuid4().hex}.part"
        try:
            digest = _download(client, address, part)
            return InputFile(part.replace(self.folder / digest), digest)
        except BadInput as error:
            return error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return BadInput(f"an address that can be read ({error or type(error).__name__})")
        finally:
            part.unlink(missing_ok=True)


def _download(client: httpx.Client, address: str, target: Path) -> str:
    """Writes what ``address`` answers to ``target``; its sha256 in hex. Raises BadInput saying what would be right."""
    digest = hashlib.sha256()
    with target.open("wb") as file, client.stream("GET", address) as answer:
        if answer.status_code != httpx.codes.OK:
            raise BadInput(f"an address that answers 200, not {answer.status_code}")
        for chunk in answer.iter_bytes():
            digest.update(chunk)
            file.write(chunk)
            if file.tell() > LARGEST:
                raise BadInput(f"at most {LARGEST >> 20} MB")
    return digest.hexdigest()
