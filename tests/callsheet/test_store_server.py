"""The store over HTTP: players may seek, names may be Chinese, and nothing outside the folder is ever given."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from callsheet.manifest import LatestRun
from callsheet.r2 import R2Store
from callsheet.r2_client import R2Settings
from callsheet.store import LocalFolder
from tests.buckets import bucket
from tests.conftest import started

LATEST = LatestRun(
    script={"name": "demo", "sha256": "0"},
    batch="demo",
    finished="2026-11-21T00:00:00+00:00",
    manifest="batches/demo/manifest.json",
    report="batches/demo/report.html",
)
SECRET = b"the secret beside the store"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("served")
    (parent / "secret.txt").write_bytes(SECRET)
    (parent / "out2").mkdir()
    (parent / "out2/secret.txt").write_bytes(SECRET)
    store = LocalFolder(parent / "out")
    store.put("batches/demo/第一幕/开场 1.mp4", bytes(range(256)) * 16)
    store.put("batches/demo/a.vtt", b"WEBVTT\n")
    store.put("batches/demo/report.html", b"<h1>demo</h1>")
    store.put("batches/demo/report-data.js", b"window.CALLSHEET = {}")
    store.put("batches/a&b <x>/report.html", b"<h1>x</h1>")
    (store.root / ".lock").write_bytes(SECRET)
    (store.root / "link.txt").symlink_to(parent / "secret.txt")
    (store.root / "linked").symlink_to(parent)
    return store.root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    yield from started("callsheet.store_server", str(root), "--with-parent")


def raw(url: str, path: str, *, host: str = "127.0.0.1") -> tuple[int, bytes]:
    """A request with the path as it is: a client of any decency would tidy it up."""
    port = urlsplit(url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_a_player_may_seek_in_a_clip_with_a_chinese_name(
    root: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_STORE_URL", url)
    address = LocalFolder(root).url("batches/demo/第一幕/开场 1.mp4")
    assert address.isascii()
    whole = httpx.get(address)
    assert (whole.status_code, len(whole.content), whole.headers["content-type"]) == (200, 4096, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    part = httpx.get(address, headers={"Range": "bytes=256-259"})
    assert (part.status_code, part.content) == (206, bytes(range(4)))
    assert part.headers["content-range"] == "bytes 256-259/4096"
    assert httpx.get(address, headers={"Range": "bytes=-2"}).content == bytes([254, 255])
    assert httpx.get(address, headers={"Range": "bytes=4096-"}).status_code == 416
    assert httpx.head(address).headers["content-length"] == "4096"


def test_captions_have_their_type_and_what_is_not_there_is_404(url: str) -> None:
    assert httpx.get(f"{url}/batches/demo/a.vtt").headers["content-type"].startswith("text/vtt")
    assert httpx.get(f"{url}/batches/demo/nothing.mp4").status_code == 404
    assert httpx.get(f"{url}/batches/demo/").status_code == 404, "no folder is listed"
    assert httpx.post(f"{url}/batches/demo/a.vtt").status_code == 405


def test_the_first_page_leads_to_the_reports(url: str) -> None:
    page = httpx.get(f"{url}/").text
    assert 'href="batches/demo/report.html"' in page
    assert "a&amp;b &lt;x&gt;" in page
    assert httpx.get(f"{url}/batches/a%26b%20%3Cx%3E/report.html").text == "<h1>x</h1>"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/batches/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/batches/%2e%2e/%2e%2e/secret.txt",
        "/%252e%252e/secret.txt",
        "//secret.txt",
        "/..\\secret.txt",
        "/../out2/secret.txt",
        "/link.txt",
        "/linked/secret.txt",
        "/.lock",
        "/batches/../.lock",
        "/%00",
        "/secret.txt%00.mp4",
        "/" + "a" * 5000,
    ],
)
def test_nothing_outside_the_store_is_given(url: str, root: Path, path: str) -> None:
    for asked in (path, path.replace("secret.txt", str(root.parent / "secret.txt"))):
        status, body = raw(url, asked)
        assert status in (400, 404), (asked, status)
        assert SECRET not in body


def test_absolute_paths_do_not_lead_out(url: str, root: Path) -> None:
    assert raw(url, f"/{root.parent}/secret.txt")[0] == 404
    assert raw(url, f"//{root.parent}/secret.txt")[0] == 404


def test_another_site_cannot_read_the_store_through_a_browser(url: str) -> None:
    assert raw(url, "/batches/demo/a.vtt", host="evil.example")[0] == 400
    assert raw(url, "/batches/demo/a.vtt", host="localhost")[0] == 200


def test_it_listens_on_this_machine_only(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")


def test_addresses_are_of_the_folder_that_is_served_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = LocalFolder(tmp_path / "out"), LocalFolder(tmp_path / "other")
    assert out.url("a b.mp4") == (tmp_path / "out/a%20b.mp4").as_uri().replace("%2520", "%20")
    monkeypatch.setenv("CALLSHEET_STORE_URL", "http://127.0.0.1:4201/")
    assert other.url("a#1.mp4") == "http://127.0.0.1:4201/a%231.mp4"
    monkeypatch.setenv("CALLSHEET_STORE_SERVED", str(tmp_path / "out"))
    assert out.url("幕/a.mp4") == "http://127.0.0.1:4201/%E5%B9%95/a.mp4"
    assert LocalFolder(tmp_path / "out/team").url("a.mp4") == "http://127.0.0.1:4201/team/a.mp4"
    assert other.url("a.mp4").startswith("file://")


@pytest.fixture(scope="module")
def of_bucket(s3: str) -> Iterator[str]:
    """A bucket of which a part is served; its objects are nobody's to read without keys."""
    store = bucket(s3, "served", "team")
    store.put("batches/demo/第一幕/开场 1.mp4", bytes(range(256)) * 16)
    store.put("batches/demo/report.html", b"<h1>demo</h1>")
    store.put("latest/demo.json", LATEST.model_dump_json().encode())
    store.put(".leases/x.json", SECRET)
    store._client.put_object(Bucket="served", Key="elsewhere.txt", Body=SECRET)
    keys = {"R2_ENDPOINT_URL": s3, "R2_ACCESS_KEY_ID": "key", "R2_SECRET_ACCESS_KEY": "hush-hush"}
    yield from started("callsheet.store_server", "r2://served/team", "--with-parent", env=keys)


def test_a_bucket_is_handed_on_part_by_part(of_bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_STORE_URL", of_bucket)
    monkeypatch.setenv("CALLSHEET_STORE_SERVED", "r2://served/team")
    served = R2Store(R2Settings(s3, "served", "key", SecretStr("hush-hush"), "team"))
    address = served.link("batches/demo/第一幕/开场 1.mp4")
    assert address.startswith(f"{of_bucket}/batches/demo/")
    whole = httpx.get(address)
    assert (whole.status_code, len(whole.content), whole.headers["content-type"]) == (200, 4096, "video/mp4")
    part = httpx.get(address, headers={"Range": "bytes=256-259"})
    assert (part.status_code, part.content) == (206, bytes(range(4)))
    assert part.headers["content-range"] == "bytes 256-259/4096"
    assert httpx.head(address).headers["content-length"] == "4096"
    assert httpx.post(address).status_code == 405
    assert 'href="batches/demo/report.html"' in httpx.get(of_bucket).text
    told = str([*whole.headers.raw, *httpx.get(f"{of_bucket}/nothing").headers.raw])
    assert "Signature" not in told


@pytest.mark.parametrize(
    "path",
    ["/../elsewhere.txt", "/%2e%2e/elsewhere.txt", "/..%2felsewhere.txt", "//elsewhere.txt", "/.leases/x.json", "/no.mp4"],
)  # fmt: skip
def test_nothing_outside_what_is_served_of_a_bucket_is_given(of_bucket: str, path: str) -> None:
    status, body = raw(of_bucket, path)
    assert status == 404
    assert SECRET not in body
    assert b"hush" not in body


def test_links_of_a_bucket_are_to_what_is_served_and_no_secret(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = bucket(s3, "linked", "team/a"), bucket(s3, "linked-2", "team")
    assert store.link("x.mp4") == ""
    monkeypatch.setenv("CALLSHEET_STORE_URL", "http://127.0.0.1:4201")
    assert store.link("x.mp4") == "", "nobody said that it is this one"
    monkeypatch.setenv("CALLSHEET_STORE_SERVED", "r2://linked/team")
    assert store.link("x y.mp4") == "http://127.0.0.1:4201/a/x%20y.mp4"
    assert store.url("x y.mp4") == store.link("x y.mp4")
    assert other.link("x.mp4") == ""
    monkeypatch.setenv("CALLSHEET_STORE_SERVED", "r2://linked/te")
    assert store.link("x.mp4") == ""


def test_data_is_for_pages_of_the_store_alone(url: str, of_bucket: str) -> None:
    """Another site's page could load it as a script, and read what it sets."""
    for asked in (f"{url}/batches/demo/report-data.js", f"{of_bucket}/latest/demo.json"):
        answer = httpx.get(asked)
        assert answer.status_code == 200
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "cross-origin-resource-policy" not in httpx.get(f"{url}/batches/demo/a.vtt").headers
