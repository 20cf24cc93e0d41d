import io
import json
import logging
from collections.abc import Iterator

import pytest

from lrai.log import get_log, start_log


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def test_event_is_one_json_line_with_its_fields() -> None:
    stream = io.StringIO()
    start_log("json", stream=stream)
    get_log("models").info("model_ready", "model 'mlp' is ready", version="1", load_ms=12)
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "room": "models",
        "event": "model_ready",
        "message": "model 'mlp' is ready",
        "version": "1",
        "load_ms": 12,
    }


def test_message_with_line_breaks_stays_one_json_line() -> None:
    stream = io.StringIO()
    start_log("json", stream=stream)
    get_log("models").error("model_failed", "first\nsecond")
    assert stream.getvalue().count("\n") == 1


def test_event_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    start_log("json", "warning", stream)
    get_log("models").info("model_ready", "model 'mlp' is ready")
    assert stream.getvalue() == ""


def test_text_shows_sentence_and_fields() -> None:
    stream = io.StringIO()
    start_log("text", stream=stream)
    get_log("models").warning("model_note", "opset 11 is old", opset=11)
    assert stream.getvalue().endswith(" warning opset 11 is old  opset=11\n")


def test_auto_is_json_where_nobody_looks() -> None:
    stream = io.StringIO()
    start_log("auto", stream=stream)
    get_log("server").info("listening", "listening")
    assert json.loads(stream.getvalue())["event"] == "listening"


def test_foreign_records_take_the_same_way_with_their_traceback() -> None:
    stream = io.StringIO()
    start_log("json", stream=stream)
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("asyncio").exception("a task failed")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["room"]) == ("log", "asyncio")
    assert "ValueError: inner" in line["traceback"]
