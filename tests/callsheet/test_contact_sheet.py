"""The contact sheet: every print in its place, those to review marked, odd sizes and long names no harm."""

import io

import PIL.Image
import pytest

from callsheet.media.contact_sheet import Print, contact_sheet


def picture(colour: str, size: tuple[int, int] = (96, 54)) -> bytes:
    target = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(target, format="PNG")
    return target.getvalue()


def opened(sheet: bytes) -> PIL.Image.Image:
    shown = PIL.Image.open(io.BytesIO(sheet))
    assert shown.format == "JPEG"
    return shown.convert("RGB")


def near(pixel: tuple[int, ...], wanted: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 30 for a, b in zip(pixel, wanted, strict=True))


def test_prints_lie_in_rows_of_four() -> None:
    colours = ["red", "lime", "blue", "white", "yellow"]
    sheet = opened(contact_sheet([Print(f"s{n}", picture(colour)) for n, colour in enumerate(colours)]))
    assert sheet.size == (4 * 248 + 8, 2 * 165 + 8)
    assert near(sheet.getpixel((128, 75)), (255, 0, 0))
    assert near(sheet.getpixel((128 + 248, 75)), (0, 255, 0))
    assert near(sheet.getpixel((128, 75 + 165)), (255, 255, 0)), "the fifth begins the second row"


def test_a_print_that_needs_a_review_is_framed() -> None:
    plain, marked = (opened(contact_sheet([Print("a", picture("blue"), needs)])) for needs in (False, True))
    assert near(plain.getpixel((9, 75)), (0, 0, 255))
    assert near(marked.getpixel((9, 75)), (0xFF, 0xB4, 0x54))
    assert near(marked.getpixel((128, 75)), (0, 0, 255))


def test_tall_pictures_are_whole_and_long_names_are_cut() -> None:
    sheet = opened(contact_sheet([Print("x" * 100, picture("red", (54, 96)), needs_review=True)]))
    assert sheet.size == (256, 173)
    assert near(sheet.getpixel((128, 75)), (255, 0, 0))
    assert not near(sheet.getpixel((20, 75)), (255, 0, 0)), "with paper at its sides"


def test_nothing_and_what_is_no_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        contact_sheet([])
    with pytest.raises(OSError, match="cannot identify"):
        contact_sheet([Print("a", b"no picture")])
