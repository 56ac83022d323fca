"""Scripts that were dropped: whole ones only, each by one run, laid away with what came of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from callsheet.errors import BadInput
from callsheet.inbox import FolderInbox, StoreInbox
from callsheet.store import LocalFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    (folder / "night.csv").write_text("shot_id\na\n", "utf-8")
    return folder


def test_tables_beside_scripts_and_what_programs_put_down_are_no_scripts(folder: Path) -> None:
    for name in ("voices.csv", "Lexicon.CSV", ".hidden.csv", "~$night.csv", "notes.txt"):
        (folder / name).write_text("x", "utf-8")
    (folder / "folder.csv").mkdir()
    (folder / "夜.CSV").write_text("shot_id\na\n", "utf-8")
    assert list(FolderInbox(folder).scripts()) == ["night.csv", "夜.CSV"]


def test_an_inbox_that_is_not_there_is_made_and_a_file_is_none(tmp_path: Path, folder: Path) -> None:
    assert FolderInbox(tmp_path / "new/inbox").scripts() == {}
    assert (tmp_path / "new/inbox").is_dir()
    with pytest.raises(BadInput, match="expected a folder"):
        FolderInbox(folder / "night.csv").scripts()


def test_a_script_is_claimed_by_one_and_laid_away_once(folder: Path) -> None:
    one, two = FolderInbox(folder), FolderInbox(folder)
    version = one.scripts()["night.csv"]
    with one.claim("night.csv", version) as claim, two.claim("night.csv", version) as other:
        assert other is None
        assert claim is not None
        assert claim.script == folder / "night.csv", "it stays where its voices are"
        where = claim.lay_away("done", "3 shots done", b"{}")
    assert where == str(folder / "done/night.csv")
    assert (folder / "done/night.txt").read_text("utf-8") == "3 shots done\n"
    assert (folder / "done/night.json").read_bytes() == b"{}"
    with two.claim("night.csv", version) as late:
        assert late is None


HOLDER = """
import sys, time
from pathlib import Path
from callsheet.inbox import FolderInbox
inbox = FolderInbox(Path(sys.argv[1]))
with inbox.claim("night.csv", inbox.scripts()["night.csv"]) as claim:
    print("held" if claim else "not held", flush=True)
    time.sleep(600)
"""


def test_the_claim_of_a_killed_run_is_given_back(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        inbox = FolderInbox(folder)
        version = inbox.scripts()["night.csv"]
        with inbox.claim("night.csv", version) as claim:
            assert claim is None
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with inbox.claim("night.csv", version) as claim:
        assert claim is not None


def test_a_name_that_was_there_before_gets_a_number(folder: Path) -> None:
    inbox = FolderInbox(folder)
    for text in ("first", "second", "third"):
        script = folder / "night.csv"
        script.write_text(text, "utf-8")
        with inbox.claim("night.csv", inbox.scripts()["night.csv"]) as claim:
            assert claim is not None
            claim.lay_away("failed", f"the {text} is broken")
    laid = {path.name: path.read_text("utf-8") for path in (folder / "failed").iterdir()}
    assert laid == {
        "night.csv": "first",
        "night.txt": "the first is broken\n",
        "night-2.csv": "second",
        "night-2.txt": "the second is broken\n",
        "night-3.csv": "third",
        "night-3.txt": "the third is broken\n",
    }


def test_a_script_that_is_changed_while_it_is_produced_stays_for_the_next_run(folder: Path) -> None:
    inbox = FolderInbox(folder)
    with inbox.claim("night.csv", inbox.scripts()["night.csv"]) as claim:
        assert claim is not None
        (folder / "night.csv").write_text("shot_id\na\nb\n", "utf-8")
        where = claim.lay_away("done", "1 shot done")
    assert where == str(folder / "done/night.txt")
    assert list(inbox.scripts()) == ["night.csv"]


def test_a_bucket_brings_what_lies_beside_a_script_but_no_other(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path / "store")
    tables = {
        "night.csv": b"shot_id,image\na,pictures/lake.png\nb,rec\nc,../outside.png\nd,nowhere.png\n",
        "voices.csv": b"voice,audio\nanna,audio/anna.wav\n",
    }
    others = (
        "other.csv",
        "audio/anna.wav",
        "audio/nobody.wav",
        "pictures/lake.png",
        "done/old.csv",
        "done/night.csv",
    )
    for path in (*tables, *others):
        store.put(f"inbox/{path}", tables.get(path, path.encode()))
    store.put("outside.png", b"secret")
    store.put("inbox/rec/anna.wav", b"a name that is a folder's, too")
    inbox = StoreInbox(store)
    assert list(inbox.scripts()) == ["night.csv", "other.csv"]
    here = tmp_path / "here"
    here.mkdir()
    claim = inbox.bring("night.csv", here)
    assert claim is not None
    assert sorted(path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()) == [
        "audio/anna.wav",
        "night.csv",
        "pictures/lake.png",
        "voices.csv",
    ]
    assert claim.lay_away("done", "all done", b"{}") == "inbox/done/night-2.csv"
    assert store.get("inbox/done/night-2.csv") == tables["night.csv"]
    assert store.get("inbox/done/night-2.txt") == b"all done\n"
    assert store.get("inbox/done/night.csv") == b"done/night.csv"
    assert list(inbox.scripts()) == ["other.csv"]
    assert inbox.bring("night.csv", here) is None


def test_a_script_of_a_bucket_that_is_changed_meanwhile_stays(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path / "store")
    store.put("inbox/night.csv", b"first")
    inbox = StoreInbox(store)
    claim = inbox.bring("night.csv", tmp_path)
    assert claim is not None
    store.put("inbox/night.csv", b"second")
    assert claim.lay_away("done", "all done") == "inbox/done/night.txt"
    assert store.get("inbox/night.csv") == b"second"
