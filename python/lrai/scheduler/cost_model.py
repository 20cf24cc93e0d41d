"""How long a batch takes, learnt while the model serves.

Each batch size has a cell with forgetting statistics; a line through the cells, fitted by least
squares of relative errors, predicts sizes that were never seen. Where the cells contradict the
line by more than their noise, they win: the prediction is then a table.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import exp2, hypot, inf, log2, sqrt
from typing import Any, Final

from lrai.scheduler.knobs import ServicePoint
from lrai.scheduler.observation import ServiceSample

# A cell remembers about so many batches; the line forgets by halves in so much time.
_MEMORY: Final = 64.0
_HALF_LIFE_S: Final = 20.0
_LEAST_WEIGHT: Final = 0.02
# A guess before anything is known: half of a single row's time is fixed, and so uncertain it is.
_PRIOR: Final = 0.5
_PRIOR_WEIGHT: Final = 0.002
_PRIOR_NOISE: Final = 0.1
_MISFIT: Final = 0.01
_SURPRISE: Final = 0.1
_CERTAINTY: Final = 0.7
# Batches after which a size is known.
_KNOWN: Final = 8.0
# A bucket that no request fell into for so long is forgotten: edges are learnt anew, lengths drift.
_FORGOTTEN_S: Final = 3600.0
# What is left of a bucket's weight after a tick.
_FADE: Final = 0.95
# A batch that is so many variances from the others was held up; rarer ones are no rule.
_HELD_UP: Final = 36.0
_LEAST_SHARE: Final = 1 / 4000
_HELD_UP_FADE: Final = 0.995
_EXACT_ROWS: Final = 16
# Few batches that were held up for long make the spread of all as large as one likes.
_MOST_SPREAD: Final = 64.0
# What was not run is not taken for more times slower or faster than when it last was.
_MOST_CHANGE: Final = 4.0


class _Cell:
    """Batches of about one size."""

    __slots__ = (
        *("mean_s", "measured_s", "rows", "seen_s", "typical_s", "variance_s2", "weight"),
        *("new", "new_rows", "new_s", "new_s2"),
    )

    def __init__(self, plain: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0)) -> None:
        self.weight, self.rows, self.mean_s, self.variance_s2, self.seen_s = plain
        self.typical_s = _typical(self.mean_s, self.variance_s2)
        """The median, were times log-normal: batches that a busy machine held up move it little."""
        self.measured_s = self.mean_s
        """The mean when it was last run; `scale` keeps near to it."""
        self.new = self.new_rows = 0
        self.new_s = self.new_s2 = 0.0

    def learn(self, now_s: float) -> None:
        """Take in what was laid aside; older batches count less the more new ones there are."""
        if not self.new:
            return
        old, new = min(self.weight, _MEMORY), float(self.new)
        share = new / (old + new)
        mean_s = self.new_s / new
        spread_s2 = max(0.0, self.new_s2 / new - mean_s * mean_s)
        gap_s = mean_s - self.mean_s
        between_s2 = share * (1 - share) * gap_s * gap_s
        self.variance_s2 += share * (spread_s2 - self.variance_s2) + between_s2
        self.mean_s += share * gap_s
        self.rows += share * (self.new_rows / new - self.rows)
        self.weight, self.seen_s, self.measured_s = old + new, now_s, self.mean_s
        self.typical_s = _typical(self.mean_s, self.variance_s2)
        self.new = self.new_rows = 0
        self.new_s = self.new_s2 = 0.0

    def weight_at(self, now_s: float) -> float:
        """Return the weight of what was seen a while ago."""
        age_s = now_s - self.seen_s
        return self.weight * max(exp2(-age_s / _HALF_LIFE_S), _LEAST_WEIGHT)

    def scale(self, factor: float) -> None:
        """Take all batches as if they had taken `factor` times as long, with less certainty."""
        # However often: it remains better known than what was never run.
        self.weight = max(_CERTAINTY * self.weight, min(self.weight, 1.0))
        most, least = _MOST_CHANGE * self.measured_s, self.measured_s / _MOST_CHANGE
        factor = min(max(factor * self.mean_s, least), most) / self.mean_s
        self.mean_s *= factor
        self.typical_s *= factor
        self.variance_s2 *= factor * factor

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
        self.busy_s = self.rows = 0.0
        """Of late; both fade at the same rate."""
        self.seen_s = inf
        """When its last batch came; what was kept from a former run counts from the first fit."""
        self.batches = self.held_up = self.held_up_s = 0.0
        """Of late: batches, how many of them were held up, and for how long in all."""
        self._knots: list[tuple[float, float]] = []

    def fit(self, now_s: float, max_rows: int) -> None:
        """Draw the line and the corrections to it from the cells."""
        for cell in self.cells.values():
            cell.learn(now_s)
        cells = sorted(self.cells.values(), key=lambda cell: cell.rows)
        first = cells[0]
        single_s = first.typical_s / (1 - _PRIOR + _PRIOR * first.rows)
        prior = _PRIOR_WEIGHT / single_s**2
        aa, ab, bb, ya, yb = prior, 0.0, prior, _PRIOR * prior * single_s, _PRIOR * prior * single_s
        noise, total = _PRIOR_NOISE**2, 1.0
        for cell in cells:
            weight = cell.weight_at(now_s)
            over = 1 / cell.typical_s
            aa += weight * over * over
            ab += weight * over * over * cell.rows
            bb += weight * over * over * cell.rows * cell.rows
            ya += weight * over
            yb += weight * over * cell.rows
            noise += weight * cell.variance_s2 / (cell.mean_s * cell.mean_s)
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
        self._knots = [(cell.rows, self._misfit(cell, now_s)) for cell in cells]
        self.table_s = self._table_s(max_rows)

    def _table_s(self, max_rows: int) -> list[float]:
        """The predictions by rows: straight on from both ends of what was seen."""
        table_s, at, knots = [0.0], 0, [(0.0, self._knots[0][1]), *self._knots]
        (low, left), (high, right) = knots[0], knots[1]
        for rows in range(1, max_rows + 1):
            while rows > high and at + 2 < len(knots):
                at += 1
                (low, left), (high, right) = knots[at], knots[at + 1]
            misfit = left + (right - left) * (rows - low) / (high - low) if rows < high else right
            table_s.append((self.alpha_s + self.beta_s * rows) * (1 + misfit))
        return table_s

    def _misfit(self, cell: _Cell, now_s: float) -> float:
        """How far the cell is from the line, as a ratio, without what may be its noise."""
        ratio = cell.typical_s / (self.alpha_s + self.beta_s * cell.rows) - 1
        doubt = _MISFIT**2 + 2 * self.noise**2 / cell.weight_at(now_s)
        return ratio * ratio * ratio / (ratio * ratio + doubt)

    def add(self, samples: Sequence[ServiceSample], now_s: float) -> bool:
        """Lay batches aside; return whether they are new or unlike others of their size."""
        took_s = expected_s = chance_s2 = known = busy_s = all_rows = 0.0
        touched, find, noise2 = [], self.cells.get, self.noise * self.noise
        self.seen_s = now_s
        for _, rows, batches, sum_s, sum_squares_s2 in samples:
            cell = find(rows if rows <= _EXACT_ROWS else _cell_of(rows))
            touched.append(cell)
            busy_s += sum_s
            all_rows += batches * rows
            if cell is None or cell.weight < _KNOWN:
                continue
            usual_s = cell.typical_s
            chance2 = noise2 * usual_s * usual_s
            known += batches
            expected_s += batches * usual_s
            chance_s2 += batches * chance2
            square_s2 = sum_s * sum_s / batches
            spread_s2 = max(0.0, sum_squares_s2 - square_s2)
            took_s += sum_s / sqrt(1 + min(spread_s2 / square_s2, _MOST_SPREAD))
            if spread_s2 > (_HELD_UP + batches) * chance2:
                self.held_up += 1
                self.held_up_s += sqrt(spread_s2 - batches * chance2)
        self.busy_s += busy_s
        self.rows += all_rows
        self.batches += known
        chance_s = _SURPRISE * expected_s + 3 * sqrt(chance_s2)
        is_odd = known >= _KNOWN and abs(took_s - expected_s) > chance_s
        if is_odd:
            # Whatever slowed or sped these batches did the same to those that were not run.
            for one in self.cells.values():
                one.learn(now_s)
                one.scale(took_s / expected_s)
        self._lay_aside(samples, touched)
        return is_odd or None in touched

    def _lay_aside(self, samples: Sequence[ServiceSample], cells: Iterable[_Cell | None]) -> None:
        for (_, rows, batches, sum_s, sum_squares_s2), known in zip(samples, cells, strict=True):
            cell = known or self.cells.setdefault(_cell_of(rows), _Cell())
            cell.new += batches
            cell.new_rows += batches * rows
            cell.new_s += sum_s
            cell.new_s2 += sum_squares_s2

    def doubt_s(self, rows: int) -> float:
        """Return the standard error of the line at `rows`."""
        aa, ab, bb = self.doubt
        return sqrt(max(0.0, aa + 2 * ab * rows + bb * rows * rows))


class ServiceModel:
    """Predicts the time of a batch from its bucket edge and rows."""

    def __init__(self, max_rows: int) -> None:
        """Know nothing; batches have at most `max_rows` rows."""
        self.max_rows = max(1, max_rows)
        self._steps = _steps(self.max_rows)
        self._curves: dict[int, _Curve] = {}

    @property
    def edges(self) -> list[int]:
        """Bucket edges that are learnt, ascending; [0] for a model without buckets."""
        return sorted(self._curves)

    def busiest(self) -> tuple[int, float]:
        """Return the bucket edge that takes most of the time, and its share of all rows."""
        edge, curve = max(self._curves.items(), key=lambda one: one[1].busy_s)
        return edge, curve.rows / (sum(one.rows for one in self._curves.values()) or 1.0) or 1.0

    def update(self, samples: Iterable[ServiceSample], now_s: float) -> bool:
        """Learn from a tick's batches; return whether predictions have changed at once.

        They do where sizes are new or take another time than before, and else with `fit`.
        """
        by_edge: dict[int, list[ServiceSample]] = {}
        for sample in samples:
            if sample.batches > 0 and sample.rows > 0 and sample.sum_s > 0:
                by_edge.setdefault(sample.edge, []).append(sample)
        is_surprised = False
        for curve in self._curves.values():
            curve.busy_s *= _FADE
            curve.rows *= _FADE
            curve.batches *= _HELD_UP_FADE
            curve.held_up *= _HELD_UP_FADE
            curve.held_up_s *= _HELD_UP_FADE
        for edge, group in by_edge.items():
            curve = self._curves.setdefault(edge, _Curve())
            if curve.add(group, now_s):
                curve.fit(now_s, self.max_rows)
                is_surprised = True
        return is_surprised

    def fit(self, now_s: float) -> None:
        """Let the predictions follow what was seen, and forget buckets that are not used."""
        for curve in self._curves.values():
            curve.seen_s = min(curve.seen_s, now_s)
            curve.fit(now_s, self.max_rows)
        last_s = max((curve.seen_s for curve in self._curves.values()), default=now_s)
        used = (one for one in self._curves.items() if one[1].seen_s > last_s - _FORGOTTEN_S)
        self._curves = dict(used)

    def predict(self, rows: int, edge: int = 0) -> tuple[float, float]:
        """Return mean and standard deviation of one batch in seconds; raises KeyError unlearnt."""
        curve = self._curves[edge]
        mean_s = curve.table_s[min(rows, self.max_rows)]
        return mean_s, hypot(curve.noise * mean_s, curve.doubt_s(rows))

    def doubt_s(self, edge: int = 0) -> float:
        """Return the standard error of alpha in seconds."""
        return sqrt(self._curves[edge].doubt[0])

    def is_compared(self, edge: int = 0) -> bool:
        """Return whether larger batches are known as well, not only single rows."""
        cells = self._curves[edge].cells
        return sum(cell.weight for rows, cell in cells.items() if rows > 1) >= _KNOWN

    def line(self, edge: int = 0) -> tuple[float, float]:
        """Return alpha and beta of `alpha + beta rows`, in seconds."""
        return self._curves[edge].alpha_s, self._curves[edge].beta_s

    def noise(self, edge: int = 0) -> float:
        """Return the standard deviation of one batch, relative to its mean."""
        return self._curves[edge].noise

    def held_up_s(self, edge: int = 0) -> float:
        """Return for how long batches are held up now and then; 0 = hardly ever."""
        curve = self._curves[edge]
        is_rule = curve.held_up > max(1.0, _LEAST_SHARE * curve.batches)
        return curve.held_up_s / curve.held_up if is_rule else 0.0

    def table_s(self, edge: int = 0) -> list[float]:
        """Return the expected time by rows, from 0 (which takes none) to `max_rows`."""
        return self._curves[edge].table_s

    def points(self) -> tuple[ServicePoint, ...]:
        """Return the curves as the data plane wants them: a few points each."""
        return tuple(
            ServicePoint(edge, rows, self._curves[edge].table_s[rows])
            for edge in self.edges
            for rows in self._steps
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


def _typical(mean: float, variance: float) -> float:
    return mean / sqrt(1 + min(variance / (mean * mean), _MOST_SPREAD)) if mean else 0.0


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
