"""``callsheet setup`` and ``callsheet ui``: what a Prefect server needs, and one on this machine that has it."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

WorkPool = Annotated[
    str, typer.Option(help="Prefect work pool of the deployments; made where it is missing.")
]


def setup(
    work_pool: WorkPool = "local",
    fleet: Annotated[
        str,
        typer.Option(help="Whose limits are made: draft, the path of a fleet file, or block:gpu-fleet/NAME."),
    ] = "draft",
    gpu_slots: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many lanes may be busy at once, of all runs; all of them when not given."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Make what Callsheet needs on the Prefect server: block types, limits, work pool, deployments. Changes nothing twice."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows import local  # noqa: PLC0415
    from flows.setting_up import SetUp  # noqa: PLC0415

    things = local.set_up(SetUp(work_pool=work_pool, fleet=fleet, gpu_slots=gpu_slots))
    if as_json:
        print(json.dumps({"work_pool": work_pool, "things": [asdict(thing) for thing in things]}))
        return
    _print_things(things, all_of_them=True)


def ui(
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="UI_PORT",
            help="Port of the UI; the first free one from 4200 when not given.",
        ),
    ] = None,
    store: Annotated[
        str, typer.Option(help="Where runs keep what they make; a folder is served, so that links open.")
    ] = "out",
    work_pool: WorkPool = "local",
) -> None:
    """Start the Prefect UI on this machine with a worker, until Ctrl-C: open it, fill in a form, run."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows import local  # noqa: PLC0415
    from flows.ui import Desk  # noqa: PLC0415

    console = Console(stderr=True, highlight=False)
    console.print("Starting a Prefect server, a worker and the store …", markup=False)

    def told(addresses: Any) -> None:
        _print_things(addresses.things, all_of_them=False)
        out = Console(highlight=False)
        lines = [
            f"Prefect UI:   {addresses.ui}",
            f"Produce:      {addresses.ui}/deployments (produce › Run)",
            *([f"Store:        {addresses.store} ({store})"] if addresses.store else []),
            f"Worker's log: {addresses.log}",
            f"From a shell: export PREFECT_API_URL={addresses.ui}/api",
            "Ctrl-C ends all of it.",
        ]
        out.print("\n".join(lines), soft_wrap=True, markup=False)

    def ending() -> None:
        console.print("Ending: a run that is at work may take a minute or two to give its hosts back …")

    local.ui(Desk(work_pool=work_pool, store=store, port=port), told, ending)
    console.print("Ended.", markup=False)


def _print_things(things: list[Any], *, all_of_them: bool) -> None:
    out = Console(highlight=False)
    for thing in things:
        if all_of_them or thing.state == "left":
            line = f"{thing.state:8}{thing.kind} {thing.name}" + (f" ({thing.note})" if thing.note else "")
            out.print(line, soft_wrap=True, markup=False)
    counted = Counter(thing.state for thing in things)
    told = ", ".join(
        f"{counted[state]} {state}" for state in ("made", "updated", "there", "left") if counted[state]
    )
    out.print(f"Set up: {told}.", soft_wrap=True, markup=False)
