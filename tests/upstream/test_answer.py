from __future__ import annotations

import pytest

from ssegate.upstream.answer import MAX_HEAD, AnswerReader, BrokenAnswerError

OK = b"HTTP/1.1 200 OK\r\n"
CODED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Read:
    """What was read of some bytes, given in these parts."""

    def __init__(self, *parts: bytes, to_head: bool = False, reader: AnswerReader | None = None) -> None:
        self.reader = reader or AnswerReader()
        self.reader.expect(is_to_head=to_head)
        self.body = b""
        for part in parts:
            self._take(part)

    def _take(self, part: bytes) -> None:
        reader, buffer, position = self.reader, bytearray(part), 0
        with memoryview(buffer) as view:
            if not reader.has_head:
                position = reader.read_head(buffer, view, 0, len(part))
            if reader.has_head and position < len(part):
                self.body += reader.read_body(view[position:])


def cut(whole: bytes) -> list[tuple[bytes, bytes]]:
    return [(whole[:at], whole[at:]) for at in range(1, len(whole))]


WHOLE = [
    (OK + b"Content-Length: 4\r\nX-A: 1  \r\nx-a:2\r\nX-E:\r\n\r\nbody", b"body", 4),
    (CODED + b"4;a=b\r\nbody\r\n1\r\n!\r\n0\r\n\r\n", b"body!", 1),
    (b"HTTP/1.1 304 NM\r\nContent-Length: 9\r\n\r\n", b"", 1),
    (b"HTTP/1.1 204\r\n\r\n", b"", 0),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", b"x", 2),
]


@pytest.mark.parametrize(("whole", "body", "fields"), WHOLE)
def test_a_whole_answer_is_read_wherever_it_is_cut(whole: bytes, body: bytes, fields: int) -> None:
    for parts in [(whole,), *cut(whole)]:
        read = Read(*parts)
        assert read.body == body
        assert len(read.reader.fields) == fields
        assert read.reader.is_complete
        assert read.reader.is_persistent
        assert not read.reader.has_surplus
        assert Read(OK + b"Content-Length: 1\r\n\r\n2", reader=read.reader).body == b"2"


def test_white_space_round_a_value_is_not_part_of_it() -> None:
    for parts in [(WHOLE[0][0],), *cut(WHOLE[0][0])]:
        fields = Read(*parts).reader.fields
        assert fields == [(b"Content-Length", b"4"), (b"X-A", b"1"), (b"x-a", b"2"), (b"X-E", b"")]


@pytest.mark.parametrize("head", [b"Content-Length: 9", b"Transfer-Encoding: chunked", b"X: 1", b"Content-Length: 0"])
def test_an_answer_to_head_has_no_body_whatever_it_says(head: bytes) -> None:
    whole = OK + head + b"\r\n\r\n"
    for parts in [(whole,), *cut(whole)]:
        read = Read(*parts, to_head=True)
        assert read.reader.is_complete
        assert read.reader.is_persistent
        assert Read(OK + b"Content-Length: 1\r\n\r\n2", reader=read.reader).body == b"2"
    read = Read(whole + b"x", to_head=True)
    assert (read.body, read.reader.has_surplus) == (b"", True)
    assert not Read(OK + b"Connection: Close\r\n\r\n", to_head=True).reader.is_persistent


def test_what_is_behind_an_answer_is_nobodys() -> None:
    forged = b"HTTP/1.1 200 OK\r\nX-F: 1\r\nContent-Length: 6\r\n\r\nFORGED"
    for whole, body, fields in WHOLE:
        for behind in (forged, b"H", b"x", b"\0"):
            read = Read(whole + behind)
            assert (read.body, len(read.reader.fields), read.reader.has_surplus) == (body, fields, True)
            assert not read.reader.trailers
    assert Read(WHOLE[0][0] + b"\r\n").reader.has_surplus


def test_trailers_are_read() -> None:
    whole = CODED + b"1\r\nx\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n"
    for parts in [(whole,), *cut(whole)]:
        assert Read(*parts).reader.trailers == [(b"X-Sum", b"1"), (b"x-sum", b"2")]


@pytest.mark.parametrize(
    ("head", "persistent"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n", False),
    ],
)
def test_a_connection_is_kept_only_behind_an_answer_beyond_doubt(head: bytes, persistent: bool) -> None:
    read = Read(head)
    assert read.reader.is_complete
    assert read.reader.is_persistent is persistent
    assert read.body == b""


def test_a_body_without_length_or_chunks_ends_with_the_connection() -> None:
    read = Read(b"HTTP/1.0 200 OK\r\n\r\n", b"a", b"b")
    assert (read.body, read.reader.is_complete, read.reader.ends_with_connection) == (b"ab", False, True)
    assert not Read(OK + b"Content-Length: 3\r\n\r\na").reader.ends_with_connection


MALFORMED = [
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/0.9 200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"RTSP/1.0 200 OK\r\n\r\n",
    b"ICE/1.0 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b" HTTP/1.1 200 OK\r\n\r\n",
    b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\nX: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    *(
        OK + lines + b"\r\n\r\n"
        for lines in (
            b"A: b\r\n c",
            b" A: b",
            b"Content-Length:\r\n 2",
            b"A: b\nB: c",
            b"A: b\rc",
            b"A: b\0c",
            b"A: b\x01c",
            b"A : b",
            b"A",
            b": b",
            b"A b: c",
            b"Content-Length: 2\r\nContent-Length: 2",
            b"Content-Length: 2\r\nContent-Length: 3",
            b"Content-Length: 2, 2",
            b"Content-Length: +2",
            b"Content-Length: -2",
            b"Content-Length: 0x2",
            b"Content-Length:",
            b"Content-Length: 1 2",
            b"Content-Length: 99999999999999999999",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked, gzip",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding:",
        )
    ),
]


@pytest.mark.parametrize("head", MALFORMED)
def test_a_malformed_head_is_refused_wherever_it_is_cut(head: bytes) -> None:
    for parts in [(head,), *cut(head)]:
        with pytest.raises(BrokenAnswerError):
            Read(*parts)


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"2\nab\n0\n\n",
        b"2 \r\nab\r\n",
        b"0x2\r\nab\r\n",
        b"2\r\nabc\r\n",
        b"fffffffffffffffff\r\n",
        b"2;a\nb\r\nab\r\n",
        b"0\r\nX: 1\r\n 2\r\n\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\nX: \0\r\n\r\n",
    ],
)
def test_a_malformed_body_is_a_fault_wherever_it_is_cut(body: bytes) -> None:
    for parts in [(body,), *cut(body)]:
        read = Read(CODED)
        for part in parts:
            if read.reader.fault is None:
                read.body += read.reader.read_body(memoryview(part))
        assert read.reader.fault is not None
        assert not read.reader.is_complete


def test_what_came_before_a_fault_is_handed_out() -> None:
    read = Read(CODED + b"4\r\nhalf\r\nzz\r\n")
    assert read.body == b"half"
    assert read.reader.fault is not None


def test_heads_extensions_and_trailers_are_bounded() -> None:
    with pytest.raises(BrokenAnswerError, match="over 100 KiB"):
        Read(OK, *[b"X-Long: " + b"x" * 8192 + b"\r\n"] * 13)
    with pytest.raises(BrokenAnswerError, match="over 100 KiB"):
        Read(OK, b"X-Long: " + b"x" * MAX_HEAD + b"\r\n\r\n")
    for start in (b"2;ext=", b"0\r\nX-Long: "):
        read = Read(CODED + start)
        for _ in range(20):
            if read.reader.fault is None:
                read.reader.read_body(memoryview(b"x" * 8192))
        assert read.reader.fault is not None


@pytest.mark.parametrize("status", [100, 102, 103, 104, 199])
@pytest.mark.parametrize(
    "field", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"]
)
def test_an_informational_answer_ends_with_its_head(status: int, field: bytes) -> None:
    reader = AnswerReader()
    early = b"HTTP/1.1 %d Early\r\n%b\r\n" % (status, field)
    buffer = bytearray(early + OK + b"Content-Length: 1\r\n\r\n2")
    behind = reader.expect(is_to_head=False) or reader.read_head(buffer, memoryview(buffer), 0, len(buffer))
    assert (behind, reader.status, reader.is_complete) == (len(early), status, True)
    assert Read(bytes(buffer[behind:]), reader=reader).body == b"2"
