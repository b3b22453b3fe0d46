"""Which link is which, and what of it may be shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.links import identity, public

BARE = "https://files.example.com/a.wav"


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k%2F20261121&X-Amz-Date=1&X-Amz-Expires=900",
        "X-Amz-SignedHeaders=host&X-Amz-Signature=ab&X-Amz-Security-Token=x",
        "AWSAccessKeyId=k&Signature=s%3D&Expires=1769670760",
        "X-Goog-Algorithm=a&X-Goog-Credential=c&X-Goog-Signature=s",
        "GoogleAccessId=a&Expires=1&Signature=s",
        "sv=2024-11-04&st=1&se=2&sr=b&sp=r&spr=https&sig=x%3D&skoid=1&sktid=2&skt=3&ske=4&sks=b&skv=5",
        "OSSAccessKeyId=k&Expires=1&Signature=s&security-token=t",
        "x-oss-signature=s&x-oss-date=1&x-oss-expires=2&x-oss-credential=c",
        "q-sign-algorithm=sha1&q-ak=k&q-sign-time=1%3B2&q-key-time=1%3B2&q-header-list=&q-signature=s&x-cos-security-token=t",
        "AccessKeyId=k&Expires=1&Signature=s&x-obs-security-token=t",
        "Policy=p&Signature=s&Key-Pair-Id=k",
        "hdnea=exp%3D1~acl%3D*~hmac%3Dx",
        "auth_key=1769670760-0-0-ab",
        "token=x&expires=1",
        "X-AMZ-SIGNATURE=ab&x-amz-date=1",
        "Signature",
        "",
        "&&",
    ],
)
def test_signatures_make_no_other_file(query: str) -> None:
    """A link that was signed anew leads to the same file."""
    assert identity(f"{BARE}?{query}") == BARE


@pytest.mark.parametrize(
    "query", ["part=2", "id=1&id=2", "id=2&id=1", "response-content-type=audio%2Fwav", "b=1&a=2", "name=a%20b", "flag"]
)
def test_other_parameters_stay(query: str) -> None:
    """Other parameters may name another file: they stay, in order and in their own spelling."""
    assert identity(f"{BARE}?{query}&X-Amz-Signature=ab&Expires=1") == f"{BARE}?{query}"


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("https://files.example.com/a.wav", "https://files.example.com/A.wav"),
        ("https://files.example.com/a.wav", "https://files.example.com/a.wav/"),
        ("https://files.example.com/a.wav", "http://files.example.com/a.wav"),
        ("https://files.example.com/a.wav", "https://files.example.com:8443/a.wav"),
        ("https://files.example.com/a.wav?part=1", "https://files.example.com/a.wav?part=2"),
    ],
)
def test_other_links(url: str, other: str) -> None:
    """Another path, host, port, scheme or parameter is another file."""
    assert identity(url) != identity(other)


def test_spelling_of_the_host() -> None:
    """Scheme and host have no case, and a fragment is never sent."""
    assert identity("HTTPS://Files.Example.COM/a.wav#t=1") == BARE


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"{BARE}?X-Amz-Signature=ab", BARE),
        (f"{BARE}#secret", BARE),
        ("https://user:pw@files.example.com:8443/a.wav?x", "https://files.example.com:8443/a.wav"),
        ("https://a@b@files.example.com/a.wav", "https://files.example.com/a.wav"),
        ("https://[::1/a.wav?token=secret", "(unreadable link)"),
        ("", ""),
    ],
)
def test_what_may_be_shown(url: str, expected: str) -> None:
    """Neither credentials, query nor fragment are shown."""
    assert public(url) == expected


@given(st.one_of(st.text(), st.text(alphabet="htps:/[]@?&=#.%\\ab1\t\n", max_size=30)))
def test_any_text_has_an_identity_and_a_face(url: str) -> None:
    """Neither raises, whatever the vendor calls a link; both are stable, and no query is shown."""
    assert identity(identity(url)) == identity(url)
    assert public(public(url)) == public(url)
    assert "?" not in public(url)
    assert "#" not in public(url)
