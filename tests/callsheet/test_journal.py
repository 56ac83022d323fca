"""Journals: what is written down while a run goes is read back, whatever became of the run."""

from pathlib import Path

import pytest

from callsheet import journal as journals
from callsheet.journal import Journal, journal_cost, journal_path, read_journals
from callsheet.store import LocalFolder, Store
from callsheet.takes import Attempt, Sidecar


def sidecar(number: int, cost: float = 0.5) -> Sidecar:
    attempt = Attempt(n=0, file=f"takes/speech/{number}.0.wav", sha256="x", bytes=3, cost=cost)
    return Sidecar(
        key=str(number), kind="speech", engine="e", revision="r", inputs={}, chosen=0, attempts=[attempt]
    )


@pytest.fixture
def store(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path)


def files(store: Store) -> list[str]:
    return sorted(file.path.rpartition("/")[2] for file in store.list("batches/demo/"))


def keys(store: Store, run: str = "") -> list[str]:
    return sorted(one.key for one in read_journals(store, "demo", run))


def test_what_is_new_goes_into_a_new_file_and_one_is_left_at_the_end(store: LocalFolder) -> None:
    journal, made = Journal(store, "demo", "run"), [sidecar(0)]
    journal.write(made)
    journal.write(made)
    made += [sidecar(1), sidecar(2)]
    journal.write(made)
    assert files(store) == ["journal-run.000000.jsonl", "journal-run.000001.jsonl"]
    assert store.get(journal_path("demo", "run", 1)).count(b"\n") == 2
    assert keys(store) == ["0", "1", "2"]
    journal.close(made)
    assert files(store) == ["journal-run.jsonl"]
    assert keys(store) == ["0", "1", "2"]
    assert journal_cost(store, "demo", "run") == 1.5


def test_a_run_that_made_nothing_leaves_nothing(store: LocalFolder) -> None:
    Journal(store, "demo", "run").close([])
    assert files(store) == []


def test_a_run_that_was_suspended_goes_on_where_it_was(store: LocalFolder) -> None:
    """The same flow run, in another process: it knows only what it makes itself."""
    first = Journal(store, "demo", "run")
    first.write([sidecar(0)])
    first.close([sidecar(0)])
    killed = Journal(store, "demo", "run")
    killed.write([sidecar(1)])
    second = Journal(store, "demo", "run")
    second.write([sidecar(2)])
    assert files(store)[-1] == "journal-run.jsonl"
    assert keys(store) == ["0", "1", "2"]
    second.close([sidecar(2)])
    assert files(store) == ["journal-run.jsonl"]
    assert keys(store) == ["0", "1", "2"]


def test_many_parts_are_joined_while_it_goes(store: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MOST_PARTS", 4)
    journal, made, most = Journal(store, "demo", "run"), list[Sidecar](), 0
    for number in range(40):
        made.append(sidecar(number))
        journal.write(made)
        most = max(most, len(files(store)))
    # Joining gets rarer as it grows: parts may be a third of all lines, and no more.
    assert most <= 4 + 40 // 3
    assert len(keys(store)) == 40


def test_lines_that_were_cut_and_files_of_titles_are_no_journals(store: LocalFolder) -> None:
    line = sidecar(7).model_dump_json()
    store.put(journal_path("demo", "dead"), f"{line}\n{line[:40]}".encode())
    store.put("batches/demo/journal-x.jsonl/a.wav", line.encode())
    store.put("batches/demo/journal-x.mp4", line.encode())
    store.put("batches/demo/journal-of a title.jsonl", line.encode())
    assert keys(store) == ["7"]
    assert keys(store, "dead") == ["7"]
    assert keys(store, "other") == []


def test_a_part_that_was_cut_does_not_spoil_what_is_joined_after_it(store: LocalFolder) -> None:
    line = sidecar(1).model_dump_json()
    store.put(journal_path("demo", "run", 0), f"{line}\n{line[:30]}".encode())
    journal = Journal(store, "demo", "run")
    journal.write([sidecar(2)])
    journal.close([sidecar(2)])
    assert keys(store) == ["1", "2"]
