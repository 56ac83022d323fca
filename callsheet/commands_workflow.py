"""The command ``callsheet workflow``: which workflows there are, whether they fit a ComfyUI, and how one is added.

callsheet workflow list
callsheet workflow check                                   every workflow, against ComfyUI 0.3.64's signatures
callsheet workflow check wan_i2v --host http://127.0.0.1:8188      against what that server has, files included
callsheet workflow add portrait.json --name portrait       a graph exported from ComfyUI (Workflow → Export (API))

Exit codes: 0 all well, 1 something is missing or wrong, 2 bad input.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callsheet.errors import BadInput
from callsheet.exported import Adopted, Media, adopt
from callsheet.preflight import Finding, Signatures, check_workflow, shipped_signatures
from callsheet.workflow import SHIPPED_WORKFLOWS, Workflow, read_graph, read_workflow, read_workflows

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The ComfyUI workflows that shots may use."
)

Folder = Annotated[Path, typer.Option("--workflows", help="Folder of the workflows.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
#: What may be a cell of the column ``visual`` and a file's name everywhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@app.command("list")
def list_workflows(workflows: Folder = SHIPPED_WORKFLOWS, as_json: AsJson = False) -> None:
    """Show which workflows there are, what they make and what they need."""
    found = read_workflows(workflows)
    if as_json:
        print(json.dumps({"workflows": [_described(workflow) for workflow in found.values()]}))
        return
    table = Table("Workflow", "Kind", "What it makes", "VRAM, GB", "Files, GB")
    table.columns[0].no_wrap = True
    for workflow in found.values():
        table.add_row(
            escape(workflow.name),
            workflow.kind,
            escape(workflow.description) + ("" if workflow.verified else " (unverified)"),
            f"{workflow.vram_gb:g}",
            f"{_gigabytes(workflow):.1f}",
        )
    out = Console(highlight=False)
    out.print(table)
    for workflow in found.values():
        if workflow.doubts:
            out.print(f"Note: {workflow.doubts}", markup=False, soft_wrap=True)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="The workflows; all when none is given.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address of a ComfyUI: check against its nodes and files.")] = "",
    token_env: Annotated[
        str, typer.Option(help="Name of the environment variable with the token for --host.")
    ] = "",
    workflows: Folder = SHIPPED_WORKFLOWS,
    as_json: AsJson = False,
) -> None:
    """Check workflows against a ComfyUI's nodes: what is missing there, and what is wrong in the graph."""
    chosen = _chosen(read_workflows(workflows), names or [])
    signatures = _signatures_of(host, token_env) if host else shipped_signatures()
    checked = {workflow.name: check_workflow(workflow, signatures) for workflow in chosen.values()}
    if as_json:
        print(json.dumps(_checked(signatures, chosen, checked)))
    else:
        _print_checked(signatures, chosen, checked)
    raise typer.Exit(0 if all(_is_well(findings) for findings in checked.values()) else 1)


@app.command()
def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.json", help="A graph exported from ComfyUI in API format.")
    ],
    name: Annotated[str, typer.Option(help="Name of the workflow; the file's when not given.")] = "",
    kind: Annotated[
        str, typer.Option(help="What it makes: image, video or avatar; guessed when not given.")
    ] = "",
    output: Annotated[str, typer.Option(help="Id of the node that saves the result, where several do.")] = "",
    workflows: Folder = SHIPPED_WORKFLOWS,
    force: Annotated[bool, typer.Option("--force", help="Replace a workflow of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a workflow of a graph exported from ComfyUI: its inputs become variables."""
    media = _media(kind)
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "_", file.stem).strip("_-")
    if not _NAME.fullmatch(name):
        raise BadInput(f"--name: found {name!r}; expected letters, digits, dash and underscore")
    target = workflows / f"{name}.json"
    taken = [path for path in (target, target.with_suffix(".toml")) if path.exists()]
    if taken and not force:
        raise BadInput(f"{taken[0]}: found a workflow of that name; expected another --name, or --force")
    signatures = shipped_signatures()
    graph = _exported_graph(file)
    try:
        adopted = adopt(
            graph,
            name,
            signatures=signatures,
            known=read_workflows(SHIPPED_WORKFLOWS),
            kind=media,
            output=output,
        )
    except BadInput as error:
        raise BadInput(f"{file.name}: {error}") from None
    workflow = _written(adopted, target)
    findings = check_workflow(workflow, signatures)
    if as_json:
        print(json.dumps(_added(adopted, target, findings)))
    else:
        _print_added(adopted, target, findings)


def _described(workflow: Workflow) -> dict[str, Any]:
    return {
        "name": workflow.name,
        "kind": workflow.kind,
        "description": workflow.description,
        "verified": workflow.verified,
        "note": workflow.note,
        "vram_gb": workflow.vram_gb,
        "gigabytes": round(_gigabytes(workflow), 2),
        "licence": workflow.licence,
        "fps": workflow.fps,
        "models": [model.model_dump() for model in workflow.models_for({})],
        "nodes": [pack.model_dump() for pack in workflow.nodes],
        "estimates": [
            {**estimate.model_dump(), "seconds_per_step": round(estimate.seconds_per_step, 2)}
            for estimate in workflow.estimates
        ],
        "variables": {n: v.model_dump(exclude_defaults=True) for n, v in workflow.variables.items()},
    }


def _gigabytes(workflow: Workflow) -> float:
    """Of all its model files, as far as their sizes are declared."""
    return sum(model.gigabytes for model in workflow.models_for({}))


def _chosen(workflows: Mapping[str, Workflow], names: list[str]) -> dict[str, Workflow]:
    for name in names:
        if name not in workflows:
            raise BadInput(f"found no workflow {name}; expected one of {', '.join(workflows)}")
    return {name: workflows[name] for name in names or workflows}


def _signatures_of(host: str, token_env: str) -> Signatures:
    """What the server at ``host`` says of its nodes. The token is read from the environment, never given as text."""
    from callsheet.engines.comfyui import ComfyUI  # noqa: PLC0415  offline checks need no client

    if token_env and not os.environ.get(token_env):
        raise BadInput(f"--token-env: found no value in {token_env}; expected the token of {host}")
    token = SecretStr(os.environ[token_env]) if token_env else None
    try:
        name = httpx.URL(host).netloc.decode()
    except httpx.InvalidURL as error:
        raise BadInput(f"--host: found {host!r} ({error}); expected http://NAME:8188") from None
    if not name:
        raise BadInput(f"--host: found {host!r}; expected an address such as http://127.0.0.1:8188")

    async def ask() -> dict[str, Any]:
        async with ComfyUI(host, name=name, token=token) as comfy:
            await comfy.ready()
            return await comfy.object_info()

    return Signatures(asyncio.run(ask()), name)


def _is_well(findings: list[Finding]) -> bool:
    return all(finding.weight == "note" for finding in findings)


def _checked(
    signatures: Signatures, workflows: Mapping[str, Workflow], checked: Mapping[str, list[Finding]]
) -> dict[str, Any]:
    return {
        "against": signatures.source,
        "complete": signatures.complete,
        "workflows": [
            {
                "name": name,
                "ok": _is_well(findings),
                "verified": workflows[name].verified,
                "note": workflows[name].note,
                "findings": [{"weight": finding.weight, **asdict(finding)} for finding in findings],
            }
            for name, findings in checked.items()
        ],
    }


def _print_checked(
    signatures: Signatures, workflows: Mapping[str, Workflow], checked: Mapping[str, list[Finding]]
) -> None:
    out = Console(highlight=False)
    files = "" if signatures.complete else ", files not looked for"
    out.print(f"Against {signatures.source}{files}", markup=False, soft_wrap=True)
    for name, findings in checked.items():
        counts = [
            f"{number} {weight}"
            for weight in ("missing", "wrong")
            if (number := sum(f.weight == weight for f in findings))
        ]
        verdict = ", ".join(counts) or "ok"
        out.print(f"{name}: {verdict}", style="" if _is_well(findings) else "red", markup=False)
        for finding in findings:
            out.print(f"  {finding.weight}: {finding.message}", markup=False, soft_wrap=True)
        if workflows[name].doubts:
            out.print(f"  note: {workflows[name].doubts}", markup=False, soft_wrap=True)


def _media(kind: str) -> Media | None:
    known: dict[str, Media] = {"image": "image", "video": "video", "avatar": "avatar"}
    if kind and kind not in known:
        raise BadInput(f"--kind: found {kind!r}; expected one of {', '.join(known)}")
    return known.get(kind)


def _exported_graph(file: Path) -> dict[str, Any]:
    try:
        return read_graph(file)
    except OSError as error:
        raise BadInput(
            f"{file}: found no file that can be read ({error.strerror}); expected a graph"
        ) from None


def _written(adopted: Adopted, target: Path) -> Workflow:
    """Writes graph and companion, once they are known to be a workflow."""
    graph = json.dumps(adopted.graph, indent=2, ensure_ascii=False) + "\n"
    try:
        contents = {".toml": adopted.companion.encode(), ".json": graph.encode()}
    except UnicodeEncodeError:
        raise BadInput(f"{adopted.name}: found half a character in a text; expected Unicode") from None
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / target.name
        for suffix, content in contents.items():
            draft.with_suffix(suffix).write_bytes(content)
        workflow = read_workflow(draft)
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in contents.items():  # the graph last: a graph without companion stops every command
        target.with_suffix(suffix).write_bytes(content)
    return workflow


def _added(adopted: Adopted, target: Path, findings: list[Finding]) -> dict[str, Any]:
    return {
        "name": adopted.name,
        "kind": adopted.kind,
        "graph": str(target),
        "companion": str(target.with_suffix(".toml")),
        "found": [asdict(found) for found in adopted.found],
        "look_at": list(adopted.look_at),
        "findings": [{"weight": finding.weight, **asdict(finding)} for finding in findings],
    }


def _print_added(adopted: Adopted, target: Path, findings: list[Finding]) -> None:
    out = Console(highlight=False)
    table = Table("Variable", "It was", "Where", title=f"{adopted.name}: {adopted.kind}")
    for found in adopted.found:
        shown = str(found.value)
        table.add_row(
            found.variable,
            escape(shown if len(shown) <= 60 else f"{shown[:57]}…"),
            escape(", ".join(found.places)),
        )
    out.print(table)
    for finding in findings:
        out.print(f"{finding.weight.capitalize()}: {finding.message}", markup=False, soft_wrap=True)
    for line in adopted.look_at:
        out.print(f"Look at: {line}", markup=False, soft_wrap=True)
    out.print(f"Written: {target} and {target.with_suffix('.toml').name}", markup=False, soft_wrap=True)
