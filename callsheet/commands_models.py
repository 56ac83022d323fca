"""The command ``callsheet models``: which model files workflows load, and what the store has of them for rented hosts.

callsheet models list --store r2://media/callsheet                     what workflows load, and whether it is there
callsheet models upload ComfyUI/models --store r2://media/callsheet    brings what they load into the store
callsheet models verify --store r2://media/callsheet                   whether all that is listed is there

Exit codes: 0 all well, 1 something is missing, 2 bad input.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from callsheet.errors import BadInput
from callsheet.models import ModelShelf, bytes_of, files_below, wanted_by
from callsheet.store import open_store
from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The model files that rented hosts load from the store."
)

Store = Annotated[str, typer.Option(help="A folder or r2://BUCKET/PREFIX.")]
Workflows = Annotated[Path, typer.Option("--workflows", help="Folder of the workflows.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
ALL_WELL, MISSING = 0, 1
_console = Console(stderr=True, highlight=False)


@app.command("list")
def list_models(
    store: Store = "out", workflows: Workflows = SHIPPED_WORKFLOWS, as_json: AsJson = False
) -> None:
    """Show which files the workflows load, where they come from, and which of them the store has."""
    wanted = wanted_by(read_workflows(workflows).values())
    there = {file.path: file for file in ModelShelf(open_store(store)).manifest().files}
    rows = [
        {
            "path": path,
            "bytes": there[path].bytes if path in there else None,
            "gigabytes": wanted[path][0].gigabytes if path in wanted else None,
            "url": wanted[path][0].url if path in wanted else "",
            "workflows": wanted[path][1] if path in wanted else [],
        }
        for path in sorted({*wanted, *there})
    ]
    if as_json:
        print(json.dumps({"models": rows}))
        return
    table = Table("File", "In the store, GB", "Workflows", "From")
    table.columns[0].no_wrap = True
    for row in rows:
        size = row["bytes"]
        table.add_row(
            escape(str(row["path"])),
            f"{int(str(size)) / 1e9:.2f}" if size is not None else "no",
            escape(", ".join(wanted[str(row["path"])][1]) if row["path"] in wanted else "none"),
            escape(str(row["url"] or "")),
        )
    Console(highlight=False).print(table)


@app.command()
def upload(
    folder: Annotated[
        Path, typer.Argument(help="Folder of models as ComfyUI has it: with unet, loras, vae, …")
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...", help="Files below it; those that the workflows load where none is given."
        ),
    ] = None,
    store: Store = "out",
    workflows: Workflows = SHIPPED_WORKFLOWS,
    everything: Annotated[bool, typer.Option("--all", help="Every file below the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring model files into the store; what is there whole is not sent again, and what was begun goes on."""
    if not folder.is_dir():
        raise BadInput(
            f'models: found no folder "{folder}"; expected that of ComfyUI, with unet, loras, vae, …'
        )
    lying = files_below(folder)
    wanted = wanted_by(read_workflows(workflows).values())
    chosen = list(paths or ()) or (lying if everything else [path for path in wanted if path in lying])
    if not chosen:
        raise BadInput(
            f"models: found none of the files below {folder} that the workflows load, such as {next(iter(wanted), 'none')}; "
            "name some, or give --all"
        )
    done = []
    shelf, total = ModelShelf(open_store(store)), bytes_of(folder, chosen)
    with _bar() as bar:
        task = bar.add_task("Models", total=total)
        for number, uploaded in enumerate(shelf.upload(folder, chosen, partial(bar.advance, task)), 1):
            file = uploaded.file
            what = "is there already" if uploaded.was_there else f"{file.bytes / 1e9:.2f} GB sent"
            bar.console.print(f"{number} of {len(chosen)}: {file.path}: {what}", markup=False)
            done.append({**file.model_dump(), "sent": not uploaded.was_there})
    if not paths and (lacking := [path for path in wanted if path not in lying]) and not everything:
        _console.print(f"Not below {folder}: {', '.join(lacking)}", markup=False)
    if as_json:
        print(json.dumps({"models": done}))


def _bar() -> Progress:
    """How many bytes are there, how fast they go, and how long it takes yet."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    return Progress(*columns, console=_console, transient=True)


@app.command()
def verify(store: Store = "out", as_json: AsJson = False) -> None:
    """Say what is wrong with the models of the store; exit code 1 where something is."""
    shelf = ModelShelf(open_store(store))
    count, faults, unlisted = len(shelf.manifest().files), shelf.faults(), shelf.unlisted()
    for path, fault in faults.items():
        _console.print(f"{path}: {fault}", markup=False, style="red")
    for path in unlisted:
        _console.print(f"{path}: is there and in no list; no host loads it", markup=False)
    if as_json:
        print(json.dumps({"models": count, "faults": faults, "unlisted": unlisted}))
    else:
        _console.print(f"{count - len(faults)} of {count} models are there", markup=False)
    raise typer.Exit(MISSING if faults else ALL_WELL)
