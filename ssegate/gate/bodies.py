"""Bodies of requests that the gate reads itself: whole, and never more than it wants."""

from __future__ import annotations

from ssegate.core.headers import Headers
from ssegate.edge.exchange import Body
from ssegate.errors import RejectedError


async def read_whole(body: Body | None, limit: int, headers: Headers, limit_name: str = "") -> bytes:
    """Read a whole body. `limit_name`: the key of the configuration that says the limit; empty is none.

    Raises `RejectedError` 413 as soon as it is too large, by its own word or in fact, and what the body raises.
    """
    length = headers.get("content-length")
    if length is not None and length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit, limit_name)
    if body is None:
        return b""
    if (whole := body.take_whole()) is not None:
        if len(whole) > limit:
            raise _too_large(limit, limit_name)
        return whole
    parts: list[bytes] = []
    size = 0
    async for part in body:
        size += len(part)
        if size > limit:
            raise _too_large(limit, limit_name)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int, name: str) -> RejectedError:
    return RejectedError(413, f"the body is larger than {limit} bytes{f' ({name})' if name else ''}")
