from collections.abc import Callable
from pathlib import Path

import pytest

from callsheet.fleet import Fleet
from callsheet.manifest import deliverable_names, file_name
from callsheet.parameters import ProduceParameters


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("The Last Lighthouse", "The Last Lighthouse"),
        ("雨夜茶馆", "雨夜茶馆"),
        ("a/b\\c: d?", "a b c d"),
        ("../../etc", "etc"),
        ("...", "untitled"),
        ("tab\tand\nline", "tab and line"),
    ],
)
def test_titles_become_names_that_every_disk_takes(title: str, name: str) -> None:
    assert file_name(title) == name


def test_long_titles_are_cut_between_characters() -> None:
    name = file_name("雨" * 200)
    assert len(name.encode()) <= 120
    assert set(name) == {"雨"}


def test_no_two_deliverables_share_a_name(write_script: Callable[..., Path]) -> None:
    titles = ["Intro", "intro", "Intro?", "report.html", "manifest.json", "untitled", ""]
    rows = [
        {"shot_id": f"s{n}", "title": title, "text": f"Line {n}.", "voice": "anna"}
        for n, title in enumerate(titles)
    ]
    names = deliverable_names(ProduceParameters(script=write_script(*rows)).plan(Fleet()))
    assert len({name.casefold() for name in names.values()}) == len(names)
    assert names["s0"] == "Intro/s0"
    assert names["s6"] == "untitled/s6"
    assert not {"report.html", "manifest.json"} & {name.split("/")[0] for name in names.values()}
