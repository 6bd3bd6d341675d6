"""A stored body comes back as it was; damage is told, not passed on."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.bodies import pack, unpack
from gateway.store.rows import body_text


@given(st.binary(max_size=3000) | st.sampled_from([b"a" * 2047, b"a" * 2048, b"ab" * 8192, b"a" * 100_000]) | st.none())
def test_what_is_packed_comes_back(body: bytes | None) -> None:
    encoding, data = pack(body)
    assert unpack(encoding, bytes(data)) == body


def test_only_what_gets_smaller_is_compressed() -> None:
    assert [pack(body)[0] for body in (None, b"", b"a" * 100, b"a" * 4000, b"a" * 50_000)] == ["", "raw", "raw", "zlib", "zlib"]
    assert pack(os.urandom(4000))[0] == "raw"
    assert len(pack(b"a" * 50_000)[1]) < 500


@pytest.mark.parametrize(("encoding", "data"), [("zlib", b"no zlib"), ("zlib", b""), ("zstd", b"later")])
def test_damage_is_told(encoding: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"damaged body|unknown encoding"):
        unpack(encoding, data)
    assert (body_text(encoding, data) or "").startswith("[")


def test_a_body_that_is_no_utf_8_is_shown_with_marks() -> None:
    assert body_text("raw", b"\xffok") == "\N{REPLACEMENT CHARACTER}ok"
