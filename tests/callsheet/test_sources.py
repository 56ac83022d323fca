"""A script is taken in whatever way it is given: path, bucket, address, pasted. What comes of it is the same plan."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from callsheet.errors import BadInput
from callsheet.fleet import read_fleet
from callsheet.inputs import Mistakes
from callsheet.parameters import ProduceParameters
from callsheet.sources import Sources, name_of
from tests.buckets import bucket

ROWS = (
    {"shot_id": "a", "text": "Good morning.", "voice": "anna"},
    {"shot_id": "b", "visual": "flux_dev", "prompt": "a quiet lake"},
)


@pytest.fixture
def here(script_folder: Path, write_script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script with its voices in the folder in which the run works."""
    monkeypatch.chdir(script_folder)
    return write_script(*ROWS)


@pytest.fixture
def site(script_folder: Path) -> Iterator[str]:
    """The folder of the script over HTTP."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(script_folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def keys(parameters: ProduceParameters, scratch: Path | None) -> list[str]:
    return sorted(parameters.plan(read_fleet("draft"), scratch).steps)


def test_a_pasted_script_is_the_same_plan_as_its_file(here: Path, tmp_path: Path) -> None:
    expected = keys(ProduceParameters(script=here), None)
    text = here.read_text("utf-8")
    for pasted in (text, text.replace("\n", "\r\n"), f"\n{text}\n\n"):
        assert keys(ProduceParameters(script=pasted, batch="typed"), tmp_path) == expected
    assert ProduceParameters(script=text, batch="typed").batch_name == "typed"


def test_a_pasted_script_needs_a_name() -> None:
    with pytest.raises(ValidationError, match="batch: found no name"):
        ProduceParameters(script="shot_id,text\na,b")


def test_mistakes_in_a_pasted_script_name_row_and_column(here: Path, tmp_path: Path) -> None:
    pasted = ProduceParameters(script="shot_id,text,voice\na,Good morning.,bob\n", batch="typed")
    with pytest.raises(Mistakes) as told:
        pasted.plan(read_fleet("draft"), tmp_path)
    assert 'typed.csv row 2, column voice: found "bob"' in str(told.value)


def test_a_pasted_script_does_not_lead_out_of_the_folder(here: Path, tmp_path: Path) -> None:
    pasted = ProduceParameters(
        script='shot_id,visual,prompt,image\na,wan_i2v,x,/etc/hostname\nb,wan_i2v,x,"../x.png"\n',
        batch="typed",
    )
    with pytest.raises(Mistakes) as told:
        pasted.plan(read_fleet("draft"), tmp_path)
    assert len(told.value.mistakes) == 2
    assert all("a path inside" in mistake.expected for mistake in told.value.mistakes)


def test_a_script_with_an_address(here: Path, site: str, tmp_path: Path) -> None:
    expected = keys(ProduceParameters(script=here), None)
    there = ProduceParameters(script=f"{site}/{here.name}")
    assert there.batch_name == here.stem
    assert keys(there, tmp_path) == expected
    with pytest.raises(BadInput, match="expected an address that answers 200, not 404") as told:
        keys(ProduceParameters(script=f"{site}/nowhere.csv?token=hush"), tmp_path)
    assert "hush" not in str(told.value), "an address may be signed"


def test_a_script_of_a_bucket_comes_with_what_it_needs_and_nothing_else(
    here: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = keys(ProduceParameters(script=here), None)
    store = bucket(s3, "sources", "scripts")
    for path in here.parent.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(here.parent).as_posix(), path.read_bytes())
    store.put("takes/large.bin", b"0" * 1000)
    for name, value in (
        ("R2_ENDPOINT_URL", s3), ("R2_ACCESS_KEY_ID", "key"), ("R2_SECRET_ACCESS_KEY", "secret"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    scratch = tmp_path / "scratch"
    assert keys(ProduceParameters(script=f"r2://sources/scripts/{here.name}"), scratch) == expected
    assert not list(scratch.rglob("large.bin"))
    voices = "r2://sources/scripts/voices.csv"
    pasted = ProduceParameters(script=here.read_text("utf-8"), batch="typed", voices=voices)
    assert keys(pasted, tmp_path / "other") == expected
    for wrong, told in (
        ("r2://sources/scripts/nowhere.csv", "no such key"),
        ("r2://sources", "r2://BUCKET/KEY"),
    ):
        with pytest.raises(BadInput, match=told):
            keys(ProduceParameters(script=wrong), scratch)


def test_decisions_can_be_pasted_as_the_report_saves_them(here: Path, tmp_path: Path) -> None:
    decisions = f"shot_id,step,take,attempt,decision,note\na,speech,{'0' * 64},0,retake,too fast\n"
    (decided,) = ProduceParameters(script=here, decisions=decisions).decided(tmp_path)
    assert (decided.shot_id, decided.decision, decided.note) == ("a", "retake", "too fast")
    assert ProduceParameters(script=here, decisions="").decided() == []


def test_only_files_where_nothing_can_be_brought() -> None:
    with pytest.raises(BadInput, match="found a pasted table; expected the path of a file"):
        Sources(None).bring("a\nb", "script")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("data/demo.csv", "demo"),
        ("r2://media/scripts/夜.csv", "夜"),
        ("https://example.org/my%20night.csv?sig=1#x", "my night"),
        ("shot_id\na", ""),
        ("data/demo.csv\n", "demo"),
    ],
)
def test_a_batch_is_called_after_its_script(given: str, name: str) -> None:
    assert name_of(given) == name
