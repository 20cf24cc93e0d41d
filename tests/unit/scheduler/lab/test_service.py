import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lrai.errors import ConfigError
from lrai.scheduler.lab.service import Service, affine, read_service


def test_times_are_linear_between_and_beyond_what_is_known():
    service = Service(((0, 1, 100.0), (0, 4, 130.0), (0, 8, 290.0), (64, 1, 500.0)))
    assert [service.time_us(rows) for rows in (1, 2, 4, 6, 10)] == [100, 110, 130, 210, 370]
    assert service.time_us(7, edge=64) == service.time_us(7, edge=99) == 500


def test_the_capacity_is_that_of_the_best_batch():
    assert affine(80.0, 13.0).capacity(32) == pytest.approx(32 / 496e-6)
    knee = Service(((0, 1, 100.0), (0, 8, 100.0), (0, 9, 1000.0), (0, 32, 4000.0)))
    assert knee.capacity(32) == pytest.approx(8 / 100e-6)


def test_times_come_from_two_numbers_a_file_or_a_server(tmp_path):
    assert read_service("80,13").time_us(10) == pytest.approx(210)
    path = tmp_path / "times.json"
    path.write_text(json.dumps([[0, 8, 150.5], [0, 1, 72]]))
    assert read_service(str(path)).times_us == ((0, 1, 72.0), (0, 8, 150.5))


def test_a_server_tells_what_it_has_measured():
    def total(count, ns):
        return {"count": count, "ns": ns}

    class Statistics(BaseHTTPRequestHandler):
        def do_GET(self):
            batches = [
                {
                    "batch_size": 4,
                    "compute_input": total(2, 40_000),
                    "compute_infer": total(2, 160_000),
                },
                {
                    "batch_size": 1,
                    "compute_input": total(5, 50_000),
                    "compute_infer": total(5, 350_000),
                },
                {"batch_size": 9, "compute_input": total(0, 0), "compute_infer": total(0, 0)},
            ]
            body = json.dumps({"model_stats": [{"name": "mlp", "batch_stats": batches}]}).encode()
            assert self.path == "/v2/models/mlp/stats"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Statistics) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        service = read_service(f"http://127.0.0.1:{server.server_port}", "mlp")
        thread.join()
    assert service.times_us == ((0, 1, 80.0), (0, 4, 100.0))


def test_times_that_fall_with_rows_never_become_none():
    falling = Service(((0, 4, 5.0), (0, 8, 3.0)))
    assert falling.time_us(32) == 1e-3
    assert falling.capacity(32) == pytest.approx(32e9)


@pytest.mark.parametrize(
    "text",
    ["80", "80,x", "nowhere.json", "-80,13", "80,inf", "1e300,1", "0,1e-300", "http://x"],
)
def test_what_names_no_times_is_refused(text):
    with pytest.raises(ConfigError, match="names no service times"):
        read_service(text)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="names no service times"):
        read_service("http://127.0.0.1:9/a b", "mlp")


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[]", "[[0, 1]]", "[[0, 0, 5]]", "[[-1, 1, 5]]", "[[0, 4294967296, 5]]"),
        *("[[0, 1e400, 5]]", "[[0, 1, 5], [0, 1, 7]]", "[" * 20_000),
    ],
)
def test_a_file_without_times_is_refused(tmp_path, text):
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"names no service times|cannot be read"):
        read_service(str(path))
