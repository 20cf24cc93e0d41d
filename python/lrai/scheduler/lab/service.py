"""Service times of a simulated replica: given, read from a file, or asked of a running server."""

import json
import urllib.request
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from lrai.errors import ConfigError

_HINT: Final = "write ALPHA,BETA in us, a .json file of [edge, rows, us] lists, or a server's URL"
_PATIENCE_S: Final = 10.0
# What the simulator takes: 32 bits, twelve days; nothing is faster than a nanosecond.
_MOST_ROWS, _MOST_US, _LEAST_US = 1 << 32, 1e12, 1e-3


@dataclass(frozen=True)
class Service:
    """How long batches take, and what disturbs them."""

    times_us: tuple[tuple[int, int, float], ...]
    """(edge, rows, us), rising by edge, then rows; linear in between. Edge 0 = no lengths."""
    noise: float = 0.05
    """Standard deviation of a factor with mean 1 on each batch."""
    spike: tuple[float, float] = (0.001, 300.0)
    """(probability, us) of an additional delay of a batch."""
    slowdowns: tuple[tuple[float, float, float], ...] = ()
    """(from_s, to_s, factor): batches that begin meanwhile take longer."""

    def time_us(self, rows: int, edge: int = 0) -> float:
        """Return the undisturbed time of a batch, by the same lines as the simulator's."""
        known = sorted({one[0] for one in self.times_us})
        nearest = next((one for one in known if one >= edge), known[-1])
        curve = [(b, us) for at, b, us in self.times_us if at == nearest]
        if len(curve) == 1:
            return curve[0][1]
        above = next((at for at, (b, _) in enumerate(curve) if b >= rows), len(curve) - 1)
        (low, start), (high, end) = curve[max(above, 1) - 1], curve[max(above, 1)]
        return max(_LEAST_US, start + (end - start) * (rows - low) / (high - low))

    def capacity(self, max_rows: int, edge: int = 0) -> float:
        """Return the most rows/s that one replica can compute."""
        return max(rows / self.time_us(rows, edge) * 1e6 for rows in range(1, max_rows + 1))

    def to_plain(self) -> dict[str, Any]:
        """Return the simulator's configuration of it."""
        return asdict(self)


def affine(alpha_us: float, beta_us: float) -> Service:
    """Return alpha + beta * rows, with 5% noise and a delay of 300 us on 0.1% of the batches."""
    return Service(((0, 1, alpha_us + beta_us), (0, 2, alpha_us + 2 * beta_us)))


def read_service(text: str, model: str = "") -> Service:
    """Return the service times that a person names; raises ConfigError."""
    try:
        if text.startswith(("http://", "https://")):
            return _asked(text, model)
        if text.endswith(".json"):
            points = json.loads(Path(text).read_text(encoding="utf-8"))
            return _checked(points)
        alpha_us, beta_us = map(float, text.split(","))
        return _checked([(0, rows, alpha_us + beta_us * rows) for rows in (1, 2)])
    except (OSError, HTTPException, ValueError, TypeError, LookupError) as error:
        raise ConfigError(f"--service {text} names no service times: {error}", _HINT) from None
    except (OverflowError, RecursionError) as error:
        raise ConfigError(f"--service {text} cannot be read: {error}", _HINT) from None


def _checked(points: Any) -> Service:
    times = sorted((int(edge), int(rows), float(us)) for edge, rows, us in points)
    if not times or any(
        not (0 <= edge < _MOST_ROWS and 0 < rows < _MOST_ROWS and _LEAST_US <= us < _MOST_US)
        for edge, rows, us in times
    ):
        raise ValueError(f"rows are above 0, times {_LEAST_US:g} to {_MOST_US:g} us")
    if len({one[:2] for one in times}) < len(times):
        raise ValueError("two times for the same edge and rows")
    return Service(tuple(times))


def _asked(url: str, model: str) -> Service:
    """Read the mean time per batch size, as the gateway saw it, out of the server's statistics."""
    if not model:
        raise ValueError("a server has several models; name one with --model")
    address = f"{url.rstrip('/')}/v2/models/{quote(model, safe='')}/stats"
    with urllib.request.urlopen(address, timeout=_PATIENCE_S) as answer:
        batches = json.load(answer)["model_stats"][0]["batch_stats"]
    parts = ("compute_input", "compute_infer")  # the first one holds the way there and back
    return _checked(
        (0, one["batch_size"], sum(one[part]["ns"] / one[part]["count"] for part in parts) / 1e3)
        for one in batches
        if one["compute_infer"]["count"]
    )
