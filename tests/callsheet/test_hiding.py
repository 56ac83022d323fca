"""What of a text is hidden before a person, a log or a store sees it."""

import base64

import pytest

from callsheet.hiding import shown_address, without


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://example.org/a.png", "https://example.org/a.png"),
        ("https://example.org:8443/a/b.png?sig=5f2e&x=1#top", "https://example.org:8443/a/b.png"),
        ("https://anna:5f2e@example.org/a.png", "https://example.org/a.png"),
        ("https://anna:5f2e@[bad/a.png?sig=5f2e", "[bad/a.png"),
    ],
)
def test_an_address_is_shown_without_what_lets_one_in(address: str, shown: str) -> None:
    assert shown_address(address) == shown


def test_a_secret_goes_however_it_is_written() -> None:
    secret = "5f/2e+77d1"
    text = f"{secret}, sig=5f%2F2e%2B77d1, {base64.b64encode(secret.encode()).decode()}, and the rest"
    assert without(text, [secret, ""]) == "…, sig=…, …, and the rest"


def test_a_secret_that_is_a_common_word_spoils_no_message() -> None:
    assert without("the key does not open", ["key"]) == "the key does not open"
