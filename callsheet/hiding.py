"""Secrets kept out of what people read: texts that come from outside may repeat what was sent there.

shown_address("https://example.org/a.png?sig=5f2e")     # 'https://example.org/a.png'
without("401: 5f2e77d1 is unknown", ["5f2e77d1"])  # '401: … is unknown'
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from urllib.parse import quote, urlsplit, urlunsplit

#: What is shorter is found in words that mean something else.
LEAST_LETTERS = 8


def shown_address(address: str) -> str:
    """How an address is named in messages: without a name and password, and without what stands behind its question mark."""
    try:
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    except ValueError:  # no address: what looks like one's secrets goes nevertheless
        return address.partition("?")[0].rpartition("@")[2]


def without(text: str, secrets: Iterable[str]) -> str:
    """``text`` without these secrets, as they are, and as addresses and base64 write them."""
    for secret in (secret for secret in secrets if len(secret) >= LEAST_LETTERS):
        for written in (
            secret,
            quote(secret),
            quote(secret, safe=""),
            base64.b64encode(secret.encode()).decode(),
        ):
            text = text.replace(written, "…")
    return text


def quiet_http_log() -> None:
    """httpx logs the address of each request, which may hold a secret; whoever reads the log needs none of them."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
