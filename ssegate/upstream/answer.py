"""Reads an upstream's answers: bytes in, their heads and bodies out, and whether another answer can be trusted to follow.

httptools (llhttp) parses. The end of a head is looked for first and the head is given to it alone: it does not say how far it
has read, and what follows the head of an answer to HEAD, of a 1xx or of a 101 is not a body. What it lets through and HTTP
does not is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable

import httptools

from ssegate.core.headers import Pair

MAX_HEAD = 100 * 1024
"""Bytes of an answer's head, and of what stands between two pieces of its body: chunk extensions, trailers."""

_BLANK_LINE = b"\r\n\r\n"
_VERSION_1_1 = b"HTTP/1.1 "
_VERSION_1_0 = b"HTTP/1.0 "
_BROKEN_HEAD = "the head of its answer is cut or is not HTTP/1.1"
_LARGE_HEAD = f"the head of its answer is over {MAX_HEAD // 1024} KiB"
_BROKEN_BODY = "its answer's body was cut or is malformed"


class BrokenAnswerError(Exception):
    """The answer is not what HTTP/1.1 allows. The message is a fact, and quotes nothing of the answer."""


class AnswerReader:
    """The answers that come over one connection, one after the other; `expect` goes before each.

    After an exception, with a `fault` or a surplus, or when `is_persistent` is false, nothing more can be read.
    """

    __slots__ = (
        "_dry", "_fields", "_is_1_0", "_is_ambiguous", "_is_to_head", "_parser", "_partial", "_pieces", "_whole", "fault", "fields",
        "has_head", "has_surplus", "is_complete", "is_persistent", "names", "on_body", "status", "trailers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser: httptools.HttpResponseParser | None = None
        self._partial = bytearray()
        self._fields: list[Pair] = []
        self._whole = 0
        self._dry = 0
        self._is_1_0 = self._is_ambiguous = self._is_to_head = False
        self.has_head = False
        self.is_complete = False
        self.is_persistent = False
        """Whether the upstream keeps the connection open behind this answer."""
        self.has_surplus = False
        """Bytes came behind the answer. They belong to nobody, and nothing can be read after them."""
        self.fault: str | None = None
        """Why the body cannot be read further; what had come before was handed out."""
        self.status = 0
        self.fields: list[Pair] = []
        self.names: list[bytes] = []
        """Those of the fields, in lower case."""
        self.trailers: list[Pair] = []

    def expect(self, *, is_to_head: bool) -> None:
        """Get ready for an answer; to HEAD it has no body, whatever it says."""
        self._is_to_head = is_to_head
        self.has_head = self.is_complete = False
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
            # Length and chunks in one answer: what counts is the chunks (RFC 9112, 6.3), and that nothing follows.
            self._parser.set_dangerous_leniencies(lenient_chunked_length=True)

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer has come."""
        return self.has_head or bool(self._partial)

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body has no other end than that of the connection."""
        return self.has_head and b"content-length" not in self.names and b"transfer-encoding" not in self.names

    def cut_fact(self) -> str:
        """What to say when the answer stops here."""
        return _BROKEN_BODY if self.has_head else _BROKEN_HEAD

    # The head

    def read_head(self, buffer: bytearray, view: memoryview, start: int, end: int) -> int:
        """Take the head from `buffer[start:end]`, which `view` shows too. Returns where it ends; -1 when it is not whole and
        all was taken.

        Raises `BrokenAnswerError`.
        """
        if self._partial:
            return self._read_further(view, start, end)
        behind = buffer.find(_BLANK_LINE, start, end) + 4
        if behind < 4:
            self._partial += view[start:end]
            self._check_partial()
            return -1
        has_loose_ends = buffer.find(b" \r\n", start, behind) >= 0 or buffer.find(b"\t\r\n", start, behind) >= 0
        self._parse_head(view[start:behind], not buffer.startswith(_VERSION_1_1, start), has_loose_ends)
        return behind

    def _read_further(self, view: memoryview, start: int, end: int) -> int:
        """The head comes in parts: rare, so the parts are joined."""
        before = len(self._partial)
        self._partial += view[start:end]
        behind = self._partial.find(_BLANK_LINE, max(0, before - 3)) + 4
        if behind < 4:
            self._check_partial()
            return -1
        head, self._partial = bytes(self._partial[:behind]), bytearray()
        self._parse_head(head, not head.startswith(_VERSION_1_1), True)
        return start + behind - before

    def _check_partial(self) -> None:
        if len(self._partial) > MAX_HEAD:
            raise BrokenAnswerError(_LARGE_HEAD)
        begun = bytes(self._partial[: len(_VERSION_1_1)])
        if not (_VERSION_1_1.startswith(begun) or _VERSION_1_0.startswith(begun)):
            raise BrokenAnswerError(_BROKEN_HEAD)

    def _parse_head(self, head: memoryview | bytes, is_1_0: bool, has_loose_ends: bool) -> None:
        """`has_loose_ends`: there may be white space behind values, which belongs to none."""
        if len(head) > MAX_HEAD:
            raise BrokenAnswerError(_LARGE_HEAD)
        if is_1_0 and bytes(head[: len(_VERSION_1_0)]) != _VERSION_1_0:
            raise BrokenAnswerError(_BROKEN_HEAD)  # llhttp takes HTTP/2.0, HTTP/0.9, RTSP and ICE too
        self._is_1_0 = is_1_0
        parser = self._parser
        assert parser is not None, "`expect` goes before each answer"
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError:
            raise BrokenAnswerError(_BROKEN_HEAD) from None
        self.status = status = parser.get_status_code()
        if not self.has_head or status < 100:
            raise BrokenAnswerError(_BROKEN_HEAD)
        if has_loose_ends:
            self.fields = [(name, value.rstrip()) for name, value in self.fields]
        self.names = names = [name.lower() for name, _ in self.fields]
        self._dry = 0
        if b"transfer-encoding" in names:
            self._check_coding()
        if status < 200 or self._is_to_head:
            self._end_with_head()

    def _check_coding(self) -> None:
        """Any other coding than `chunked` would be lost with the field that names it."""
        codings = [
            value for (_, value), name in zip(self.fields, self.names, strict=True) if name == b"transfer-encoding"
        ]
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise BrokenAnswerError("its answer has a transfer coding other than chunked")
        # "ought to be handled as an error" (RFC 9112, 6.3): what comes after such an answer is anyone's guess.
        self._is_ambiguous = self._is_ambiguous or self._is_1_0 or b"content-length" in self.names

    def _end_with_head(self) -> None:
        """No body follows, though llhttp may expect one: it is not asked again."""
        self._parser = None
        self.is_complete = True
        self.is_persistent = not (self._is_1_0 or self._is_ambiguous or b"close" in options(self.fields))

    # The body

    def read_body(self, data: memoryview) -> bytes:
        """What of the body is in it, without framing; may be empty. Sets `is_complete`, `has_surplus` and `fault`."""
        parser, pieces = self._parser, self._pieces
        if self.is_complete or parser is None:
            self.has_surplus = True
            return b""
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            if self.is_complete:
                self.has_surplus = True
            else:
                self.fault = _BROKEN_BODY
        if self.is_complete and len(pieces) > self._whole:
            del pieces[self._whole :]  # a second answer that nobody asked for
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self.is_complete:
            self._look_behind(data, body)
        elif not body:
            self._stay_dry(len(data))
        else:
            self._dry = 0
        return body

    def _look_behind(self, data: memoryview, body: bytes) -> None:
        """llhttp passes over empty lines behind an answer."""
        if b"transfer-encoding" not in self.names and len(body) != len(data):
            self.has_surplus = True

    def _stay_dry(self, size: int) -> None:
        """Count what was no body: chunk extensions and trailers have no limit of their own."""
        self._dry += size
        if self._dry > MAX_HEAD:
            self.fault = _BROKEN_BODY

    # httptools

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.has_surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if not self.has_head:
            self.has_head = True
            self.fields, self._fields = self._fields, []

    def on_message_complete(self) -> None:
        if not self.is_complete:
            assert self._parser is not None, "it is the parser that calls"
            self.is_complete = True
            self.is_persistent = self._parser.should_keep_alive() and not self._is_ambiguous
            self._whole = len(self._pieces)
            self.trailers, self._fields = self._fields, []


def options(fields: Iterable[Pair]) -> set[bytes]:
    """What Connection says, in lower case."""
    said: set[bytes] = set()
    for name, value in fields:
        if name.lower() == b"connection":
            said.update(option.strip().lower() for option in value.split(b","))
    return said
