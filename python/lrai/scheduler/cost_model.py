"""How long a batch takes, learnt while the model serves.

Each batch size has a cell with forgetting statistics; a line through the cells, fitted by least
squares of relative errors, predicts sizes that were never seen. Where the cells contradict the
line by more than their noise, they win: the prediction is then a table.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from math import hypot, log2, sqrt
from typing import Any, Final

from lrai.scheduler.knobs import ServicePoint
from lrai.scheduler.observation import ServiceSample

# A cell remembers about so many batches; the line forgets by halves in so much time.
_MEMORY: Final = 64.0
_HALF_LIFE_S: Final = 20.0
_LEAST_WEIGHT: Final = 0.02
# A guess before anything is known: half of a single row's time is fixed, and so uncertain it is.
_PRIOR: Final = 0.5
_PRIOR_WEIGHT: Final = 0.02
_PRIOR_NOISE: Final = 0.1
_MISFIT: Final = 0.01
_SURPRISE: Final = 0.1
_EXACT_ROWS: Final = 16


class _Cell:
    """Batches of about one size."""

    __slots__ = ("mean_s", "rows", "seen_s", "variance_s2", "weight")

    def __init__(self, plain: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0)) -> None:
        self.weight, self.rows, self.mean_s, self.variance_s2, self.seen_s = plain

    def add(self, sample: ServiceSample, now_s: float) -> None:
        """Take in a tick's batches; the older ones count less the more there are."""
        old, new = min(self.weight, _MEMORY), float(sample.batches)
        share = new / (old + new)
        mean_s = sample.sum_s / new
        spread_s2 = max(0.0, sample.sum_squares_s2 / new - mean_s * mean_s)
        gap_s = mean_s - self.mean_s
        between_s2 = share * (1 - share) * gap_s * gap_s
        self.variance_s2 += share * (spread_s2 - self.variance_s2) + between_s2
        self.mean_s += share * gap_s
        self.rows += share * (sample.rows - self.rows)
        self.weight, self.seen_s = old + new, now_s

    def to_plain(self) -> list[float]:
        """Return the state, in the order in which it is read."""
        return [self.weight, self.rows, self.mean_s, self.variance_s2, self.seen_s]


class _Curve:
    """Service time over rows, for one bucket edge."""

    def __init__(self) -> None:
        self.cells: dict[int, _Cell] = {}
        self.alpha_s = self.beta_s = 0.0
        self.noise = _PRIOR_NOISE
        """Standard deviation of one batch, relative to its mean."""
        self.doubt = (1.0, 0.0, 1.0)
        """Covariance of alpha and beta: both variances around the covariance."""
        self.table_s: list[float] = []
        self._knots: list[tuple[float, float]] = []

    def fit(self, now_s: float, max_rows: int) -> None:
        """Draw the line and the corrections to it from the cells."""
        cells = sorted(self.cells.values(), key=lambda cell: cell.rows)
        first = cells[0]
        single_s = first.mean_s / (1 - _PRIOR + _PRIOR * first.rows)
        prior = _PRIOR_WEIGHT / single_s**2
        aa, ab, bb, ya, yb = prior, 0.0, prior, _PRIOR * prior * single_s, _PRIOR * prior * single_s
        noise, total = _PRIOR_NOISE**2, 1.0
        for cell in cells:
            age_s = now_s - cell.seen_s
            weight = cell.weight * max(0.5 ** (age_s / _HALF_LIFE_S), _LEAST_WEIGHT)
            over = 1 / cell.mean_s
            aa += weight * over * over
            ab += weight * over * over * cell.rows
            bb += weight * over * over * cell.rows * cell.rows
            ya += weight * over
            yb += weight * over * cell.rows
            noise += weight * cell.variance_s2 * over * over
            total += weight
        det = aa * bb - ab * ab
        alpha_s, beta_s = (bb * ya - ab * yb) / det, (aa * yb - ab * ya) / det
        if beta_s < 0:
            alpha_s, beta_s = ya / aa, 0.0
        elif alpha_s < 0:
            alpha_s, beta_s = 0.0, yb / bb
        self.alpha_s, self.beta_s = alpha_s, beta_s
        self.noise = sqrt(noise / total)
        square = self.noise**2 / det
        self.doubt = (bb * square, -ab * square, aa * square)
        self._knots = [(cell.rows, self._misfit(cell)) for cell in cells]
        self.table_s = [0.0, *map(self.predict_s, range(1, max_rows + 1))]

    def _misfit(self, cell: _Cell) -> float:
        """How far the cell is from the line, as a ratio, without what may be its noise."""
        ratio = cell.mean_s / (self.alpha_s + self.beta_s * cell.rows) - 1
        doubt = _MISFIT**2 + 2 * self.noise**2 / cell.weight
        return ratio * ratio * ratio / (ratio * ratio + doubt)

    def predict_s(self, rows: float) -> float:
        """Return the expected time of a batch."""
        line_s, knots = self.alpha_s + self.beta_s * rows, self._knots
        at = bisect_left(knots, (rows,))
        if at == 0:
            return line_s * (1 + knots[0][1])
        if at == len(knots):
            return line_s * (1 + knots[-1][1])
        (low, left), (high, right) = knots[at - 1], knots[at]
        return line_s * (1 + left + (right - left) * (rows - low) / (high - low))

    def doubt_s(self, rows: float) -> float:
        """Return the standard error of the line at `rows`."""
        aa, ab, bb = self.doubt
        return sqrt(max(0.0, aa + 2 * ab * rows + bb * rows * rows))


class ServiceModel:
    """Predicts the time of a batch from its bucket edge and rows."""

    def __init__(self, max_rows: int) -> None:
        """Know nothing; batches have at most `max_rows` rows."""
        self.max_rows = max(1, max_rows)
        self._curves: dict[int, _Curve] = {}

    @property
    def edges(self) -> list[int]:
        """Bucket edges that are learnt, ascending; [0] for a model without buckets."""
        return sorted(self._curves)

    def update(self, samples: Iterable[ServiceSample], now_s: float) -> bool:
        """Learn from a tick's batches; return whether they took another time than predicted.

        Predictions change with `fit`, or where a bucket edge is new.
        """
        took_s = expected_s = chance_s2 = 0.0
        is_new = False
        for sample in samples:
            if sample.batches <= 0 or sample.rows <= 0 or sample.sum_s <= 0:
                continue
            curve = self._curves.get(sample.edge) or _Curve()
            curve.cells.setdefault(_cell_of(sample.rows), _Cell()).add(sample, now_s)
            if sample.edge not in self._curves:
                self._curves[sample.edge] = curve
                curve.fit(now_s, self.max_rows)
                is_new = True
            one_s = curve.table_s[min(sample.rows, self.max_rows)]
            took_s += sample.sum_s
            expected_s += sample.batches * one_s
            chance_s2 += sample.batches * (curve.noise * one_s) ** 2
        gap_s = abs(took_s - expected_s)
        return is_new or gap_s > _SURPRISE * expected_s + 3 * sqrt(chance_s2)

    def fit(self, now_s: float) -> None:
        """Let the predictions follow what was seen."""
        for curve in self._curves.values():
            curve.fit(now_s, self.max_rows)

    def predict(self, rows: float, edge: int = 0) -> tuple[float, float]:
        """Return mean and standard deviation of one batch in seconds; raises KeyError unlearnt."""
        curve = self._curves[edge]
        mean_s = curve.predict_s(rows)
        return mean_s, hypot(curve.noise * mean_s, curve.doubt_s(rows))

    def line(self, edge: int = 0) -> tuple[float, float]:
        """Return alpha and beta of `alpha + beta rows`, in seconds."""
        return self._curves[edge].alpha_s, self._curves[edge].beta_s

    def noise(self, edge: int = 0) -> float:
        """Return the standard deviation of one batch, relative to its mean."""
        return self._curves[edge].noise

    def table_s(self, edge: int = 0) -> list[float]:
        """Return the expected time by rows, from 0 (which takes none) to `max_rows`."""
        return self._curves[edge].table_s

    def points(self) -> tuple[ServicePoint, ...]:
        """Return the curves as the data plane wants them: a few points each."""
        return tuple(
            ServicePoint(edge, rows, self._curves[edge].predict_s(rows))
            for edge in self.edges
            for rows in _steps(self.max_rows)
        )

    def to_plain(self) -> dict[str, Any]:
        """Return all cells; times since the last batch are not kept."""
        return {
            str(edge): {str(key): cell.to_plain() for key, cell in curve.cells.items()}
            for edge, curve in self._curves.items()
        }

    def from_plain(self, plain: Mapping[str, Any], now_s: float) -> None:
        """Take up what `to_plain` returned; it counts as seen now, but little."""
        for edge, cells in plain.items():
            curve = self._curves[int(edge)] = _Curve()
            for key, (weight, rows, mean_s, variance_s2, _) in cells.items():
                state = (min(weight, _MEMORY / 8), rows, mean_s, variance_s2, now_s)
                curve.cells[int(key)] = _Cell(state)
            curve.fit(now_s, self.max_rows)


def _cell_of(rows: int) -> int:
    """Sizes of up to 16 rows have a cell each, larger ones one per eighth of an octave."""
    return rows if rows <= _EXACT_ROWS else _EXACT_ROWS + int(8 * log2(rows / _EXACT_ROWS)) + 1


def _steps(max_rows: int) -> list[int]:
    """Rows at which a curve is told: all up to 4, then four per octave."""
    rows, steps = 1.0, {1, max_rows}
    while rows < max_rows:
        steps.add(round(rows))
        rows = rows + 1 if rows < 4 else rows * 2**0.25
    return sorted(steps)
