"""The command line.

    callsheet plan data/demo.csv                   what is to be done, how long it takes, what it costs
    callsheet text data/demo.csv                   how each line will be spoken
    callsheet run data/demo.csv --store out        do it
    callsheet hosts --fleet fleet.toml --full      whether the hosts are well, and what is rented
    callsheet test-connection URL                  what answers there
    callsheet report demo --store out              what it came to, and where its report is
    callsheet reap --dry-run                       which rented hosts should not be there
    callsheet store check --store out              what is broken, left over or nobody's in a store
    callsheet setup --work-pool local              makes deployments, limits and blocks on the Prefect server
    callsheet ui                                   the Prefect UI on this machine, with a worker

Exit codes: 0 all done, 1 some shots failed, 2 bad input or settings, 3 budget reached, 130 interrupted.
With ``--json`` the last line on standard output is one JSON object; everything else goes to standard error.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from callsheet import (
    commands_connection,
    commands_models,
    commands_reap,
    commands_setup,
    commands_store,
    commands_workflow,
)
from callsheet.errors import BadInput, Budget, CallsheetError
from callsheet.fleet import read_fleet
from callsheet.parameters import ProduceParameters
from callsheet.scratch import scratch_folder
from callsheet.store import open_store

if TYPE_CHECKING:
    from callsheet.batch import Batch
    from callsheet.health import Health
    from callsheet.host_list import ListedHost
    from callsheet.manifest import Manifest, Summary
    from callsheet.plan import Estimate, Plan
    from callsheet.text import Piece

DONE, SHOTS_FAILED, BAD_INPUT, BUDGET, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Turns a CSV of scripts into finished media.",
)
app.add_typer(commands_workflow.app, name="workflow")
app.add_typer(commands_models.app, name="models")
app.add_typer(commands_store.app, name="store")
app.command()(commands_reap.reap)
app.command()(commands_connection.test_connection)
app.command()(commands_setup.setup)
app.command()(commands_setup.ui)
console = Console(stderr=True, highlight=False)

Script = Annotated[
    str,
    typer.Argument(
        metavar="SCRIPT", help="The CSV with the shots: a path, r2://BUCKET/KEY, or an https address."
    ),
]
Fleet = Annotated[str, typer.Option(help="draft, the path of a fleet file, or block:gpu-fleet/NAME.")]
Store = Annotated[str, typer.Option(help="A folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME.")]
BatchName = Annotated[str, typer.Option(help="Name of the batch; the script's file name when not given.")]
Voices = Annotated[str, typer.Option(help="Path of voices.csv; the one beside the script when not given.")]
MediaRoots = Annotated[
    list[Path] | None, typer.Option("--media-root", help="Another folder that paths in the CSVs may lead to.")
]
Lexicon = Annotated[str, typer.Option(help="Path of lexicon.csv; the one beside the script when not given.")]
Workflows = Annotated[Path | None, typer.Option(help="Folder of the workflows.")]
Commercial = Annotated[
    bool, typer.Option("--commercial", help="Refuse engines and voices that forbid commercial use.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show Prefect's log.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command()
def plan(
    script: Script,
    fleet: Fleet = "draft",
    store: Store = "out",
    batch: BatchName = "",
    voices: Voices = "",
    lexicon: Lexicon = "",
    media_root: MediaRoots = None,
    workflows: Workflows = None,
    commercial: Commercial = False,
    as_json: AsJson = False,
) -> None:
    """Show what a script needs: steps, what is done already, seconds and $."""
    from callsheet.resume import find_takes  # noqa: PLC0415

    parameters = _parameters(script, fleet, store, batch, voices, lexicon, media_root, workflows, commercial)
    with scratch_folder() as given:
        planned = parameters.plan(read_fleet(fleet), given)
    found = find_takes(planned, open_store(store), parameters.batch_name)
    done = {key for key, sidecar in found.items() if not sidecar.is_decided("retake")}
    estimates = planned.estimates(done)
    low, high = planned.cost_range(done)
    if as_json:
        costs = {"cost_low": low, "cost_high": high}
        print(json.dumps(_plan_json(parameters, planned, estimates) | costs))
    else:
        _print_plan(planned, estimates)
        if (rent := planned.fleet.rent) is not None:
            Console(highlight=False).print(
                f"Rented hosts: ${low:.2f} to ${high:.2f}. The least is the work alone at ${rent.max_per_hour:.2f} an hour; the "
                "most has every boot, the load over the slowest line allowed, and every take made twice.",
                markup=False,
            )


@app.command()
def text(
    script: Script,
    fleet: Fleet = "draft",
    voices: Voices = "",
    lexicon: Lexicon = "",
    media_root: MediaRoots = None,
    workflows: Workflows = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only lines that are read otherwise.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how each line will be spoken: as written, and in the words that the engine gets."""
    parameters = _parameters(script, fleet, "out", "", voices, lexicon, media_root, workflows, False)
    with scratch_folder() as given:
        planned = parameters.plan(read_fleet(fleet), given)
    rows = [
        (shot.shot.shot_id, piece)
        for shot in planned.shots.values()
        for piece in shot.reading
        if not changed or piece.written != piece.spoken
    ]
    if as_json:
        print(json.dumps({"lines": [{"shot_id": shot_id, **asdict(piece)} for shot_id, piece in rows]}))
    else:
        _print_text(rows)


@app.command()
def run(
    script: Script,
    fleet: Fleet = "draft",
    store: Store = "out",
    batch: BatchName = "",
    voices: Voices = "",
    lexicon: Lexicon = "",
    media_root: MediaRoots = None,
    workflows: Workflows = None,
    commercial: Commercial = False,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="The most that this run may spend, in $.")
    ] = None,
    retakes: Annotated[
        int, typer.Option(min=0, max=10, help="How often a take that fails its checks is made again.")
    ] = 2,
    decisions: Annotated[
        str,
        typer.Option(help="A CSV of decisions, as the report saves it: accept, retake or reject takes."),
    ] = "",
    work_pool: Annotated[
        str, typer.Option(help="Prefect work pool whose workers make the batch in shards.")
    ] = "",
    shard_shots: Annotated[
        int, typer.Option(min=1, help="About how many shots a worker of the work pool makes in one go.")
    ] = 200,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Produce a batch: make what is missing, check it, assemble it, publish it."""
    parameters = _parameters(
        script,
        fleet,
        store,
        batch,
        voices,
        lexicon,
        media_root,
        workflows,
        commercial,
        max_cost=max_cost,
        decisions=decisions,
        advanced={"retakes": retakes, "work_pool": work_pool, "shard_shots": shard_shots},
    )
    # Every mistake is told before anything is started; blocks are read when there is a server.
    if not store.startswith("block:"):
        open_store(store)
    with scratch_folder() as given:
        parameters.decided(given)
        if not fleet.startswith("block:"):
            parameters.plan(read_fleet(fleet), given)
    _quiet_unless(verbose)
    summary = _run(parameters)
    _print_summary(summary)
    if as_json:
        print(summary.model_dump_json())
    if any(shot.error == Budget.__name__ for shot in summary.failed):
        raise typer.Exit(BUDGET)
    raise typer.Exit(SHOTS_FAILED if summary.faults else DONE)


@app.command()
def hosts(
    fleet: Fleet = "draft",
    store: Store = "out",
    full: Annotated[
        bool, typer.Option("--full", help="Let each speech engine say a sentence, and listen to it.")
    ] = False,
    voices: Annotated[Path, typer.Option(help="Path of voices.csv, for --full.")] = Path("data/voices.csv"),
    voice: Annotated[
        str, typer.Option(help="Whose voice says it; the first of the file when not given.")
    ] = "",
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Ask every engine of a fleet whether it is well, and list what is rented; exit code 1 where one is not well."""
    _quiet_unless(verbose)
    rented = _rented(fleet, store)
    if rented is not None and not as_json:
        _print_rows([host.row() for host in rented], "No host is rented.")
    from flows import local  # noqa: PLC0415
    from flows.check_hosts import CheckHostsParameters  # noqa: PLC0415

    found: list[Health] = []
    if rented is None or any(host.state == "ready" for host in rented):
        found = local.hosts(
            CheckHostsParameters(fleet=fleet, store=store, full=full, voices=voices, voice=voice)
        )
    if as_json:
        listed = {} if rented is None else {"rented": [host.model_dump() for host in rented]}
        print(json.dumps({"engines": [health.model_dump() for health in found]} | listed))
    elif found:
        _print_rows([health.row() for health in found], "")
    raise typer.Exit(DONE if all(health.ok for health in found) else SHOTS_FAILED)


def _rented(fleet: str, store: str) -> list[ListedHost] | None:
    """The hosts that a fleet rents; None where it rents none."""
    if fleet.startswith("block:") or (rent := read_fleet(fleet).rent) is None:
        return None
    from callsheet.host_list import list_hosts  # noqa: PLC0415
    from callsheet.hosts import HostBook  # noqa: PLC0415
    from callsheet.vastai import VastClient  # noqa: PLC0415

    client, book = VastClient.from_environment(), HostBook(open_store(store))
    return list(list_hosts(client, book, now=time.time(), fleet=rent.name))


def _print_rows(rows: list[dict[str, Any]], otherwise: str) -> None:
    out = Console(highlight=False)
    if not rows:
        out.print(otherwise)
        return
    table = Table(*rows[0])
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(escape(cell) for cell in row.values()))
    out.print(table)


@app.command()
def report(
    batch: Annotated[
        str, typer.Argument(metavar="BATCH", help="Name of the batch: its script's file name without ending.")
    ],
    store: Store = "out",
    as_json: AsJson = False,
) -> None:
    """Show what a batch came to, and where its report is; the page is made anew from the data of the latest run."""
    from callsheet.manifest import Manifest, batch_path, file_name  # noqa: PLC0415
    from callsheet.report.page import report_page  # noqa: PLC0415

    opened, name = open_store(store), file_name(batch)
    try:
        manifest = Manifest.model_validate_json(opened.get(batch_path(name, "manifest.json")))
    except FileNotFoundError:
        raise BadInput(
            f"batch {name}: found no manifest in {opened}; expected a batch that was run there"
        ) from None
    opened.put(batch_path(name, "report.html"), report_page(name))
    address = opened.url(batch_path(name, "report.html"))
    if as_json:
        print(json.dumps({"batch": name, "report": address, **manifest.totals.model_dump()}))
    else:
        _print_manifest(manifest)
        Console(highlight=False).print(f"Report: {address}", soft_wrap=True, markup=False)


def main() -> None:
    """The command ``callsheet``: runs the app and turns errors into messages and exit codes."""
    try:
        code = app(standalone_mode=False)
    except Budget as error:
        _fail(error, BUDGET)
    except BadInput as error:
        _fail(error, BAD_INPUT)
    except CallsheetError as error:
        _fail(error, SHOTS_FAILED)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        error.show() if hasattr(error, "show") else None
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else DONE)


def _parameters(
    script: str,
    fleet: str,
    store: str,
    batch: str,
    voices: str,
    lexicon: str,
    media_roots: list[Path] | None,
    workflows: Path | None,
    commercial: bool,
    *,
    advanced: dict[str, Any] | None = None,
    **others: Any,
) -> ProduceParameters:
    advanced = {"media_roots": media_roots or [], **(advanced or {})}
    if workflows is not None:
        advanced["workflows"] = workflows
    given = {
        "script": script, "fleet": fleet, "store": store, "batch": batch, "voices": voices, "lexicon": lexicon,
        "commercial": commercial, "advanced": advanced, **others,
    }  # fmt: skip
    try:
        return ProduceParameters(**given)
    except ValidationError as error:
        raise BadInput("; ".join(map(_told, error.errors()))) from None


def _told(mistake: Any) -> str:
    """What pydantic found wrong with a setting, with the setting's name where it is about one."""
    where = ".".join(map(str, mistake["loc"]))
    message: str = mistake["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _quiet_unless(verbose: bool) -> None:
    """Keeps Prefect's log off the terminal; before Prefect is imported."""
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def _run(parameters: ProduceParameters) -> Summary:
    """The flow, with a progress bar. A Ctrl-C or SIGTERM ends it in order."""
    from flows import local  # noqa: PLC0415  the one place where the core reaches for the flows

    console.print(
        f"Producing {parameters.batch_name} into {parameters.store} …", soft_wrap=True, markup=False
    )
    try:
        with _Bar() as bar:
            return local.run(parameters, watcher=bar, announce=lambda ui: console.print(f"Prefect UI: {ui}"))
    except (KeyboardInterrupt, local.Terminated) as signal:
        console.print("Interrupted. What is done is kept; run the same command again to go on.")
        raise typer.Exit(INTERRUPTED if isinstance(signal, KeyboardInterrupt) else TERMINATED) from None


class _Bar:
    """A progress bar, and one line for each shot that fails."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[cost]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None
        self._told: set[str] = set()

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def told(self, text: str) -> None:
        console.print(text, markup=False)

    def changed(self, batch: Batch) -> None:
        total = len(batch.plan.steps)
        if self._task is None:
            self._task = self._progress.add_task("Steps", total=total, cost="")
        failed = batch.queue.failures
        done = sum(1 for key in batch.plan.steps if key in batch.takes or key in failed)
        self._progress.update(
            self._task, total=total, completed=done, cost=f"${batch.spent:.4f}" if batch.spent else ""
        )
        if failed:
            for shot_id, failure in batch.failures.items():
                if shot_id not in self._told:
                    self._told.add(shot_id)
                    console.print(
                        f"Failed: {shot_id}: {failure.step}: {failure.reason} ({failure.error})",
                        style="red",
                        markup=False,
                    )


def _plan_json(parameters: ProduceParameters, planned: Plan, estimates: list[Estimate]) -> dict[str, Any]:
    return {
        "batch": parameters.batch_name,
        "shots": len(planned.shots),
        "programmes": len(planned.programmes),
        "steps": len(planned.steps),
        "done": sum(estimate.done for estimate in estimates),
        "engines": [asdict(estimate) for estimate in estimates],
        "seconds": sum(estimate.seconds for estimate in estimates),
        "cost": sum(estimate.cost for estimate in estimates),
        "notes": list(planned.script.notes),
    }


def _print_plan(planned: Plan, estimates: list[Estimate]) -> None:
    table = Table(
        "Engine",
        "Steps",
        "Done",
        "To do",
        "Seconds of a lane",
        "$",
        title=f"{planned.script.name}: {len(planned.shots)} shots, {len(planned.programmes)} programmes",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in estimates:
        table.add_row(
            row.engine,
            str(row.steps),
            str(row.done),
            str(row.steps - row.done),
            f"{row.seconds:.0f}",
            f"{row.cost:.2f}",
        )
    out = Console(highlight=False)
    out.print(table)
    for note in planned.script.notes:
        out.print(f"Note: {note}", markup=False)


def _print_text(rows: list[tuple[str, Piece]]) -> None:
    """Each piece as written and, where it differs, as spoken below it, with the words that changed in bold."""
    out = Console(highlight=False)
    for shot_id, piece in rows:
        rest = f"  [pause {piece.pause:g} s]" if piece.pause else ""
        out.print(f"{shot_id}  {piece.written}{rest}", markup=False, soft_wrap=True)
        if piece.spoken != piece.written:
            out.print(Text.assemble(" " * len(shot_id), "→ ", *_changes(piece)), soft_wrap=True)
    changed = sum(piece.spoken != piece.written for _, piece in rows)
    out.print(f"{len(rows)} pieces, {changed} read otherwise than written", markup=False)


def _changes(piece: Piece) -> list[tuple[str, str]]:
    """The spoken words, each with its style."""
    parts = re.findall(r"\s+|[^\W_]+|\S", piece.spoken)
    old = re.findall(r"\s+|[^\W_]+|\S", piece.written)
    styled = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, parts, autojunk=False).get_opcodes():
        styled.append(("".join(parts[start:end]), "" if kind == "equal" else "bold"))
    return styled


def _print_manifest(manifest: Manifest) -> None:
    table = Table(
        "Shot",
        "Title",
        "State",
        "Seconds",
        "$",
        "Reason",
        title=f"{manifest.batch}, finished {manifest.finished}",
    )
    for shot in manifest.shots:
        state = "needs review" if shot.needs_review and shot.state == "done" else shot.state
        reason = f"{shot.failed.step}: {shot.failed.reason}" if shot.failed else ""
        table.add_row(
            *(
                escape(cell)
                for cell in (
                    shot.shot_id,
                    shot.title,
                    state,
                    f"{shot.seconds:.1f}",
                    f"{shot.cost:.4f}",
                    reason,
                )
            )
        )
    Console(highlight=False).print(table)


def _print_summary(summary: Summary) -> None:
    made = (
        f"{summary.takes_made} takes made, {summary.takes_reused} reused"
        if summary.takes_made
        else "no new take: everything was there already"
    )
    console.print(
        f"{summary.done} of {summary.shots} shots done in {summary.seconds:.0f} s; {made}; ${summary.cost:.4f} spent."
    )
    if summary.needs_review:
        console.print(f"{summary.needs_review} to review: they stand first in the report.", style="yellow")
    for shot in summary.failed:
        console.print(f"Not done: {shot.shot_id}: {shot.step}: {shot.reason}", style="red", markup=False)
    console.print(f"Report: {summary.report}", soft_wrap=True, markup=False)


def _fail(error: CallsheetError, code: int) -> None:
    console.print(f"{error}", style="red", markup=False, soft_wrap=True)
    sys.exit(code)
