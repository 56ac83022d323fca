"""``callsheet test-connection``: what answers at an address, and if nothing does, what is wrong. It costs no GPU time.

callsheet test-connection http://127.0.0.1:8188
callsheet test-connection https://four-words.trycloudflare.com --token-env BOX_TOKEN --json

Exit codes: 0 one of the APIs that are known answers, 1 none does, 2 bad input.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callsheet.connection import Connection, Detail, checked_address, probe
from callsheet.errors import BadInput

KNOWN, NOT_KNOWN = 0, 1


def test_connection(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the server: http://NAME:8188.")],
    token_env: Annotated[
        str, typer.Option(help="Name of the environment variable that holds the server's token.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Say what answers at an address, ComfyUI or a speech server, or why nothing does; exit code 1 for that."""
    address = checked_address(url)
    found = asyncio.run(probe(address, _token(token_env, address)))
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        _print(found)
    raise typer.Exit(KNOWN if found.is_known else NOT_KNOWN)


def _token(name: str, address: str) -> SecretStr | None:
    """The token. What stands in for the variable's name is not repeated: it may be the token, given by mistake."""
    if not name:
        return None
    if not os.environ.get(name):
        raise BadInput(
            f"--token-env: found no variable of that name with a value; expected the NAME of the one that holds the token of {address}"
        )
    return SecretStr(os.environ[name])


def _as_json(found: Connection) -> dict[str, Any]:
    return {
        "url": found.url,
        "reachable": found.reachable,
        "api_type": found.api,
        "details": dict(found.details),
        "reason": found.reason,
    }


def _print(found: Connection) -> None:
    out = Console(highlight=False)
    out.print(f"{found.url}", markup=False, soft_wrap=True)
    out.print(f"Reachable: {'yes' if found.reachable else 'no'}", markup=False)
    out.print(f"API: {found.api or 'none'}", markup=False)
    if found.details:
        table = Table("Detail", "Value")
        for name, value in found.details.items():
            table.add_row(escape(name.replace("_", " ")), escape(_cell(value)))
        out.print(table)
    if found.reason:
        out.print(
            f"Reason: {found.reason}", style="" if found.is_known else "red", markup=False, soft_wrap=True
        )


def _cell(value: Detail) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value)) or "-"
