from pathlib import Path

import pytest

from callsheet.inputs import Mistakes
from callsheet.table import Table, read_table

COLUMNS = ("shot_id", "text", "voice")


def read(path: Path, content: bytes) -> Table:
    path.write_bytes(content)
    return read_table(path, columns=COLUMNS, required=("shot_id",), open_prefix="param.")


def reason(path: Path, content: bytes) -> str:
    with pytest.raises(Mistakes) as caught:
        read(path, content)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_chinese_text_is_read_in_every_encoding_people_save(
    tmp_path: Path, encoding: str, newline: str
) -> None:
    content = newline.join(["shot_id,text", "a,雨下了三天", "b,茶馆还亮着", ""]).encode(encoding)
    table = read(tmp_path / "s.csv", content)
    assert table.rows == [
        (2, {"shot_id": "a", "text": "雨下了三天"}),
        (3, {"shot_id": "b", "text": "茶馆还亮着"}),
    ]
    assert table.mistakes == []


def test_rows_are_counted_as_a_spreadsheet_counts_them(tmp_path: Path) -> None:
    content = b'shot_id,text\na,"two\nlines, and a ""quote"""\n\n,\nb,after a blank row\n'
    table = read(tmp_path / "s.csv", content)
    assert [row for row, _ in table.rows] == [2, 5]
    assert table.rows[0][1]["text"] == 'two\nlines, and a "quote"'


def test_words_that_pandas_takes_for_missing_stay_words(tmp_path: Path) -> None:
    table = read(tmp_path / "s.csv", b"shot_id,text\nNA,null\nnan,None\n")
    assert [cells for _, cells in table.rows] == [
        {"shot_id": "NA", "text": "null"},
        {"shot_id": "nan", "text": "None"},
    ]


def test_every_row_with_too_many_values_is_named(tmp_path: Path) -> None:
    table = read(tmp_path / "s.csv", b"shot_id,text\na,one, two\nb,fine\nc,x,y,z\nd,trailing,,,\n")
    assert [(mistake.row, mistake.found) for mistake in table.mistakes] == [
        (2, '3 values, the last being "two"'),
        (4, '4 values, the last being "z"'),
    ]


def test_unknown_column_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    table = read(tmp_path / "s.csv", b"shot_id,Voice,x\na,b,c\n")
    assert 'unknown column "Voice"; expected voice, perhaps' in str(table.mistakes[0])
    assert "one of shot_id, text, voice" in str(table.mistakes[1])


def test_a_persons_own_columns_and_workflow_values_are_no_mistakes(tmp_path: Path) -> None:
    assert read(tmp_path / "s.csv", b"shot_id,#reviewer,param.STEPS\na,Li,20\n").mistakes == []


def test_column_twice_and_column_without_name_are_mistakes(tmp_path: Path) -> None:
    table = read(tmp_path / "s.csv", b"shot_id,,text,text\na,b,c,d\n")
    assert [mistake.found for mistake in table.mistakes] == [
        "no name above column 2",
        'the column "text" twice',
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file"),
        (b'shot_id\n"never closed', "row 2: found a quotation mark that is never closed"),
        (b"shot_id;text\na;b\n", "columns separated by semicolons"),
        ("shot_id,text\na,b\n".encode("utf-16"), "UTF-16"),
        (b"shot_id\n\xff\xff\xff", "neither UTF-8 nor GB18030"),
        (b"shot_id,text\n" + b"a," * 30, "31 values; expected 2"),
    ],
)
def test_a_file_that_is_no_table_is_told_in_plain_words(tmp_path: Path, content: bytes, told: str) -> None:
    assert told in reason(tmp_path / "s.csv", content)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Mistakes, match="nowhere"):
        read_table(tmp_path / "nowhere.csv", columns=COLUMNS, required=())
