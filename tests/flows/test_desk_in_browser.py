"""From `callsheet ui` to a batch that was looked through, in a browser: nothing but clicks, and what a person types.

Screenshots go to the folder CALLSHEET_SCREENSHOTS, where it is set: the README shows two of them.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.conftest import ROOT
from tests.flows.desk import Desk

pytestmark = pytest.mark.slow

SCRIPT = """shot_id,title,text,voice,engine,visual,prompt,image,width,height
lh-01,The Lighthouse,"For 40 years, the keeper wrote one line a day.",anna,cosyvoice,flux_dev,A lighthouse at dusk,,832,480
lh-02,The Lighthouse,"When ships steered by satellite, nobody told him.",tom,lighttts,wan_i2v,Slow move,shot:lh-01,832,480
cg-01,雨夜茶馆,雨下了一整夜，茶馆里只剩下一盏灯。,mei,cosyvoice,flux_dev,A tea house at night in the rain,,832,480
"""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """In a folder with the demo's voices, as a clone has them."""
    folder = tmp_path / "studio"
    shutil.copytree(ROOT / "data", folder / "data")
    started = Desk(folder, CALLSHEET_HOME=str(tmp_path / "home"))
    yield started
    started.end()
    assert not started.left()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(
        viewport={"width": 1280, "height": 960},
        permissions=["clipboard-read", "clipboard-write"],
        color_scheme="light",
    )
    window = context.new_page()
    window.set_default_timeout(30_000)
    yield window
    context.close()


def kept(page: Page, name: str) -> None:
    """A screenshot for people, where somebody wants it."""
    if folder := os.environ.get("CALLSHEET_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")


def field(page: Page, name: str) -> Locator:
    """What a field of the form is filled in with."""
    label = page.locator(".schema-form-property__label").get_by_text(name, exact=True)
    return page.locator(".schema-form-property", has=label).last


def fill(page: Page, **values: str) -> None:
    for name, value in values.items():
        field(page, name if name == "Script" else f"{name} (Optional)").locator("textarea").fill(value)


def open_form(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.ui}/deployments")
    page.get_by_role("link", name="produce", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(field(page, "Script")).to_be_visible()


def submit(page: Page) -> None:
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").last.click()


def has_ended(page: Page, state: str) -> None:
    expect(page.locator(".state-badge").first).to_have_text(state, timeout=180_000)


def open_artifact(page: Page, key: str) -> None:
    page.reload()  # the UI keeps the list that it asked for while the run went
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text(key, exact=True).last.click(timeout=60_000)


def open_report(page: Page, batch: str) -> Page:
    open_artifact(page, f"batch-{batch}")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="report.html").click(modifiers=["Control"])
    opened.value.wait_for_load_state()
    return opened.value


def test_a_batch_from_the_form_to_a_retake(desk: Desk, page: Page) -> None:
    # The form, with the script pasted.
    open_form(page, desk)
    expect(page.get_by_text("The CSV with the shots.")).to_be_visible()
    fill(page, Script=SCRIPT, Batch="first", Voices="data/voices.csv")
    field(page, "Approve (Optional)").locator("label").last.click()
    expect(field(page, "Approve (Optional)").get_by_role("switch")).to_be_checked()
    kept(page, "form")
    submit(page)
    assert len(desk.runs("produce")) == 1

    # The plan and its price; nothing is made before somebody says so.
    has_ended(page, "Suspended")
    assert not (desk.folder / "out/takes").exists()
    open_artifact(page, "plan-first")
    expect(page.get_by_text("3 shots, 2 programmes; 0 of")).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="Resume").click()
    approval = page.locator(".p-modal").last
    expect(approval.get_by_text("The most that the run may spend, in $.")).to_be_visible()
    expect(approval.get_by_text("Non-Commercial License")).to_be_attached()
    kept(page, "approval")
    approval.get_by_role("button", name="Submit").click()

    # Progress while it runs, and what came of it.
    has_ended(page, "Running")
    open_artifact(page, "progress-first")
    expect(page.locator(".artifact-data-progress")).to_have_text(re.compile(r"Progress: \d+%"))
    page.go_back()
    has_ended(page, "Completed")
    page.get_by_text("Artifacts", exact=True).click()
    expect(page.get_by_text("contact-sheet-first")).to_be_visible()
    kept(page, "ui")
    open_artifact(page, "contact-sheet-first")
    sheet = page.locator(f"img[src='{desk.store}/batches/first/contact-sheet.jpg']")
    expect(sheet).to_be_visible()
    page.wait_for_function("image => image.naturalWidth > 500", arg=sheet.element_handle())
    kept(page, "contact-sheet")
    page.go_back()
    open_artifact(page, "shots-first")
    expect(page.get_by_role("link", name="cg-01.mp4")).to_be_visible()
    kept(page, "shots")
    page.go_back()

    # The report opens from the UI, its clips play and can be sought in.
    report = open_report(page, "first")
    assert report.url == f"{desk.store}/batches/first/report.html"
    expect(report.locator("#counts")).to_contain_text("0 of 3 decided")
    clip = report.locator("#shot-lh-01 video")
    clip.scroll_into_view_if_needed()
    clip.evaluate("async clip => { clip.muted = true; await clip.play() }")
    report.wait_for_function("clip => clip.currentTime > 0.5", arg=clip.element_handle())
    clip.evaluate("clip => { clip.pause(); clip.currentTime = clip.duration - 0.2 }")
    report.wait_for_function(
        "clip => !clip.seeking && clip.currentTime > clip.duration - 0.5", arg=clip.element_handle()
    )

    report.locator("#shots").evaluate("shots => shots.scrollIntoView()")
    kept(report, "report")

    # One shot is to be made again: the decision is copied, and pasted into the form of the next run.
    report.keyboard.press("r")
    expect(report.locator("#shot-lh-01 .decided")).to_contain_text("retake")
    report.get_by_role("button", name="Copy").click()
    expect(report.locator("#said")).to_contain_text("copied")
    decisions = report.evaluate("navigator.clipboard.readText()")
    open_form(page, desk)
    fill(page, Script=SCRIPT, Batch="first", Voices="data/voices.csv", Decisions=decisions)
    submit(page)
    has_ended(page, "Completed")
    again = open_report(page, "first")
    expect(again.locator("#totals")).to_contain_text("takes reused")
    expect(again.locator("#shot-lh-01")).to_contain_text("attempt 1")
    kept(again, "retaken")


def test_what_the_form_cannot_refuse_fails_at_once_and_says_why(desk: Desk, page: Page) -> None:
    open_form(page, desk)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'script' is a required property")).to_be_visible()
    fill(page, Script="shot_id,text,voice\na,Good morning.,nobody\n", Batch="wrong", Voices="data/voices.csv")
    submit(page)
    has_ended(page, "Failed")
    expect(page.get_by_text('wrong.csv row 2, column voice: found "nobody"').first).to_be_visible(
        timeout=30_000
    )
    open_artifact(page, "mistakes-wrong")
    expect(page.get_by_role("row").filter(has_text="nobody")).to_contain_text("anna, tom, mei, wei")
    kept(page, "mistakes")
    assert not (desk.folder / "out/takes").exists()
