"""Log lines on standard error, one a record, that nothing in a value can forge."""

from __future__ import annotations

import logging
import sys
import time

from ssegate.cli.terminal import is_coloured, printable

LEVELS = ("debug", "info", "warning", "error")

_COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
_RESET = "\033[0m"


class LineFormatter(logging.Formatter):
    """`2026-11-20T10:00:00Z WARNING ssegate.sources.poll  message`; the lines of a traceback follow, indented."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = f"{when} {self._level(record)} {record.name}  {printable(record.getMessage())}"
        return line if not record.exc_info else "\n".join((line, *self._traceback(record)))

    def _level(self, record: logging.LogRecord) -> str:
        paint = _COLOURS.get(record.levelno) if self._colour else None
        return f"{paint}{record.levelname}{_RESET}" if paint else record.levelname

    def _traceback(self, record: logging.LogRecord) -> list[str]:
        assert record.exc_info, "asked for only where there is one"
        return [f"    {printable(line)}" for line in self.formatException(record.exc_info).split("\n")]


def set_up_logging(level: str) -> None:
    """Send every log record of this level and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(colour=is_coloured(sys.stderr)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
