"""One event, one line: text where a person looks, JSON everywhere else.

>>> log = get_log("server")
>>> log.info("model_ready", "model 'mlp' is ready", version="1", load_ms=12)

Lines go to standard error. Foreign records (asyncio, warnings) take the same way, as event `log`.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Final, TextIO

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Log:
    """Writes the events of one room; fields are plain values that JSON can carry."""

    def __init__(self, room: str) -> None:
        """Write under the name `lrai.<room>`."""
        self._logger = logging.getLogger(f"lrai.{room}")

    def info(self, event: str, message: str, **fields: object) -> None:
        """Say that something happened as intended."""
        self.write(logging.INFO, event, message, fields)

    def warning(self, event: str, message: str, **fields: object) -> None:
        """Say that something was lost or ignored, and that service goes on."""
        self.write(logging.WARNING, event, message, fields)

    def error(self, event: str, message: str, **fields: object) -> None:
        """Say that something failed; somebody should look."""
        self.write(logging.ERROR, event, message, fields)

    def write(self, level: int, event: str, message: str, fields: Mapping[str, object]) -> None:
        """Write one event at a numeric level of the standard library."""
        if self._logger.isEnabledFor(level):
            extra = {"event": event, "fields": dict(fields)}
            self._logger.log(level, "%s", message, extra=extra)


def get_log(room: str) -> Log:
    """Return the log of a room; before `start_log` only warnings and errors are written."""
    return Log(room)


def start_log(form: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Write events to `stream` (standard error) as text or JSON; `auto` = text on a terminal."""
    target = sys.stderr if stream is None else stream
    text = form == "text" or (form == "auto" and target.isatty())
    line = logging.StreamHandler(target)
    line.setFormatter(_TextFormatter() if text else _JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [line]
    root.setLevel(LEVELS[level])
    logging.captureWarnings(True)


class _JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "room": ..., "event": ..., "message": ..., fields}`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("lrai."),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    """`12:34:56.789 info    sentence  field=value`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = getattr(record, "fields", {})
        tail = "".join(f" {name}={value}" for name, value in fields.items())
        message = record.getMessage()
        line = f"{stamp}.{int(record.msecs):03d} {record.levelname.lower():<7} {message}"
        if tail:
            line += f" {tail}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
