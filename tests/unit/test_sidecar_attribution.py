"""Tags, session and user: read from where apps put them, checked before anything is asked."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from bursar_sidecar.attribution import AttributionError, attribution_of


def given(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_a_call_without_any() -> None:
    assert attribution_of(given(), {}) == ({}, "", "")


@pytest.mark.parametrize(
    ("headers", "tags"),
    [
        ([("x-bursar-tags", "team=core,project=x")], {"team": "core", "project": "x"}),
        ([("X-Bursar-Tags", " team = core , ,project=a%2Cb%3Dc")], {"team": "core", "project": "a,b=c"}),
        ([("x-bursar-tags", "a=1"), ("x-bursar-tags", "b=2")], {"a": "1", "b": "2"}),
        ([("x-bursar-tags", "share=50%,empty=")], {"share": "50%", "empty": ""}),
        ([("x-bursar-tags", "url=a=b")], {"url": "a=b"}),
        (
            [("baggage", "userId=alice, bursar.tag.team=co%20re;ttl=1 , bursar.tag.p=x,broken")],
            {"team": "co re", "p": "x"},
        ),
    ],
)
def test_tags_are_read(headers: list[tuple[str, str]], tags: dict[str, str]) -> None:
    """F152 F162: tags travel beside the credential, in a header or in W3C baggage."""
    assert attribution_of(given(*headers), {}).tags == tags


def test_the_nearest_to_the_call_wins() -> None:
    """F155: the body over the header over baggage; what they say of other keys is added up."""
    headers = given(("baggage", "bursar.tag.a=1,bursar.tag.b=1,bursar.tag.c=1"), ("x-bursar-tags", "a=2,b=2"))
    assert attribution_of(headers, {"a": "3"}).tags == {"a": "3", "b": "2", "c": "1"}


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        ([("x-bursar-tags", "team")], {}, "x-bursar-tags"),
        ([("x-bursar-tags", "=x")], {}, "x-bursar-tags"),
        ([("x-bursar-tags", "a=1,a=2")], {}, "x-bursar-tags"),
        ([("x-bursar-tags", "k" * 65 + "=x")], {}, "x-bursar-tags"),
        ([("x-bursar-tags", "a=" + "v" * 257)], {}, "x-bursar-tags"),
        ([("x-bursar-tags", "a=%00")], {}, "x-bursar-tags"),
        ([("x-bursar-tags", ",".join(f"k{n}=1" for n in range(33)))], {}, "x-bursar-tags"),
        ([("baggage", "bursar.tag.=x")], {}, "baggage"),
        ([("baggage", "bursar.tag.a=%0a")], {}, "baggage"),
        ([], {"a\nb": "c"}, r"metadata\.tags"),
        ([], {"a": "\ud800"}, r"metadata\.tags"),
        ([("x-bursar-session", "s" * 129)], {}, "x-bursar-session"),
        ([("x-bursar-session", "a"), ("x-bursar-session", "b")], {}, "x-bursar-session"),
        ([("x-bursar-user", "a\x01")], {}, "x-bursar-user"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(
    headers: list[tuple[str, str]], body: dict[str, str], named: str
) -> None:
    with pytest.raises(AttributionError, match=f"^{named}: "):
        attribution_of(given(*headers), body)


def test_session_and_user() -> None:
    said = attribution_of(given(("x-bursar-session", " s-1 "), ("x-bursar-user", "bob@example.com")), {})
    assert (said.session_id, said.user_id) == ("s-1", "bob@example.com")
