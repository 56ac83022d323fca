"""The documentation leads somewhere: its links, and the commands that it tells people to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from callsheet.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: What ends a command and begins another, or is no part of it.
_ENDS = ("|", "||", "&&", ";", "&")

for_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its fenced blocks and its code, in which nothing is a link or a heading."""
    return re.sub(
        r"`[^`\n]*`", lambda code: code[0].replace("[", "("), _FENCED.sub("", page.read_text("utf-8"))
    )


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    found: list[str] = []
    for title in re.findall(r"^#{1,6} +(.+)$", _FENCED.sub("", page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        again = sum(re.fullmatch(re.escape(plain) + r"(-\d+)?", one) is not None for one in found)
        found.append(f"{plain}-{again}" if again else plain)
    return set(found)


def commands(page: Path) -> Iterator[list[str]]:
    """Every command of the page's shell blocks, as its words."""
    for language, block in _FENCED.findall(page.read_text("utf-8")):
        if language != "sh":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), ";"]:
                if word in _ENDS:
                    yield words
                    words = []
                else:
                    words.append(word)


def mistakes_in(words: list[str]) -> Iterator[str]:
    """What is wrong with a command: no such command, option or target."""
    words = [word for word in words if not re.fullmatch(r"export|exec|[A-Z][A-Z0-9_]*=.*", word)]
    if not words:
        return
    if words[0] == "make":
        yield from (f"make {word}" for word in words[1:] if word not in TARGETS)
    if words[0].rpartition("/")[2] != "callsheet":
        return
    command: object = typer.main.get_command(app)
    rest = words[1:]
    while isinstance(command, TyperGroup):
        name = rest.pop(0) if rest else ""
        if name not in command.commands:
            yield f"callsheet {name}"
            return
        command = command.commands[name]
    assert isinstance(command, TyperCommand)
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}:
            yield f"callsheet {command.name} {word}"


@for_each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        is_there = target.exists() and target.is_relative_to(ROOT)
        if not is_there or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@for_each_page
def test_every_command_is_there(page: Path) -> None:
    assert not [mistake for words in commands(page) for mistake in mistakes_in(words)]


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {link.partition("#")[0] for link in _LINK.findall(prose(index))}
    assert {page.name for page in (ROOT / "docs").glob("*.md") if page != index} <= linked
