from typing import Any
from xml.etree import ElementTree as ET

from lrai.cli.plot import draw

SVG = "{http://www.w3.org/2000/svg}"


def report(*latencies: float) -> dict[str, Any]:
    curve = [(0.0, 10.0), (50.0, 20.0), (90.0, 80.0), (99.0, 1500.0)]
    return {"latency": {"curve": curve}, "series": [{"p99_us": value} for value in latencies]}


def test_picture_has_a_line_per_load_in_each_panel_and_its_label() -> None:
    picture = ET.fromstring(draw({"a < b": report(10, 20), "c": report(30, 40, 50)}))
    lines = picture.findall(f".//{SVG}polyline")
    assert [len((line.get("points") or "").split()) for line in lines] == [4, 4, 2, 3]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"a < b", "c", "99%", "1 ms", "10 µs", "2 s"} <= set(texts)


def test_points_stay_inside_their_panel() -> None:
    picture = ET.fromstring(draw({"x": report(1, 1e7)}))
    for line in picture.findall(f".//{SVG}polyline"):
        for point in (line.get("points") or "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 560
            assert 0 <= y <= 320


def test_load_without_answers_is_said_not_drawn() -> None:
    nothing = {"latency": {"curve": []}, "series": []}
    texts = "".join(ET.fromstring(draw({"x": nothing})).itertext())
    assert "latency by percentile: no answers" in texts
