"""The default policy: a learnt model of service and arrivals, and the cheapest knobs under it."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from lrai.scheduler.arrival_model import ArrivalModel
from lrai.scheduler.bands import BandModel, band_of
from lrai.scheduler.cost_model import ServiceModel
from lrai.scheduler.knobs import Knobs
from lrai.scheduler.observation import Observation
from lrai.scheduler.plan import Load, Plan, choose
from lrai.scheduler.policy import Policy, Target

# A larger batch must be worth so much per row, and more than that if a lone row is to wait for it.
_WORTH: Final = 0.03
_WORTH_OF_TWO: Final = 0.1
# So many standard deviations of a batch's time are kept before the deadline.
_SURE: Final = 2.0
# And so much of the goal at most for batches that are held up now and then.
_MOST_HELD_UP: Final = 0.3
# Where so many are refused it is no crowd that passes, and only full batches will do.
_FLOODED: Final = 0.05
_LEAST_SLACK: Final = 0.02
_MOST_SLACK: Final = 0.2
_MOST_NOISE: Final = 0.25
# A batch may take two thirds of the goal where half of it would cost a quarter of the capacity.
_ALONE: Final = 1.5
_DEAR: Final = 1.25
_NEWS: Final = 0.1
# Batch sizes, evenly spread, that are compared.
_LOOKS: Final = 16
# So many batches in a tick teach enough for the next one, unless something is late.
_PLENTY: Final = 50
# So little changes no plan.
_NEAR: Final = 0.03
_REPLAN_S: Final = 1.0
_PROBE_S: Final = 60.0
# Where lengths differ, what pays depends on who waits beside whom, and is soon another.
_BAND_PROBE_S: Final = 10.0
# A full batch that is over so soon delays nobody, so a noisy look must not make it smaller.
_QUICK_S: Final = 0.005
# Every size is looked at in every plan; no batch is larger than this, whatever the model takes.
_MOST_ROWS: Final = 8192
_MOST_LATE: Final = 0.005
_MOST_MARGIN: Final = 0.5


class ModelBased(Policy):
    """Waits for more rows only where that saves processor time and the goal still holds."""

    name = "model-based"

    def __init__(self, target: Target) -> None:
        """Begin greedy: nothing is known yet."""
        super().__init__(replace(target, max_rows=min(target.max_rows, _MOST_ROWS)))
        target = self.target
        self.service = ServiceModel(target.max_rows)
        self.bands = BandModel(target.max_rows)
        """The same batches of a ragged model once more, buckets of about one length together."""
        self.arrivals = ArrivalModel()
        self.plan: Plan | None = None
        self.margin = 0.0
        """Share of the goal that is kept free because answers were late for other reasons."""
        self.longest_s = 0.0
        """How long a batch may wait for more rows and still meet the goal."""
        self._knobs = Knobs()
        self._caps = self._enough = {0: target.max_rows}
        self._planned_s = self._probed_s = float("-inf")
        self._planned_for: tuple[float, ...] = ()
        self._planned_with: tuple[float, ...] = ()
        self._late = self._refused = 0.0
        self._has_plenty = False

    def decide(self, seen: Observation) -> Knobs:
        """Learn from the tick; plan anew if what the plan rests on has changed."""
        self.arrivals.update(seen)
        is_surprised = self._learn(seen)
        if not self.service.edges:
            return self._knobs
        self._watch_lateness(seen)
        is_idle = not (seen.service or seen.pending or seen.requests)
        if seen.refused_late and is_idle and self._knobs.goal_s:
            # Everything was refused: only a try can tell whether that is right.
            self._planned_s = float("-inf")
            return replace(self._knobs, slack_s=0.0, service=())
        if is_surprised or seen.now_s - self._planned_s >= _REPLAN_S or self._has_news():
            self._replan(seen)
        return self._knobs

    def _learn(self, seen: Observation) -> bool:
        """Take in the tick's batches, every other time where there are plenty and all is well."""
        if self._has_plenty and not (seen.late or seen.refused_late):
            self._has_plenty = False
            return False
        is_surprised = self.service.update(seen.service, seen.now_s)
        is_surprised |= self.bands.update(seen.service, seen.now_s)
        batches = sum([one.batches for one in seen.service])
        self._has_plenty = batches >= _PLENTY and not is_surprised
        return is_surprised

    @property
    def is_reachable(self) -> bool | None:
        """Whether a lone row can be served within the goal; None = no goal, or not known yet."""
        if self.target.goal_s is None or not self.service.edges:
            return None
        return self.service.predict(1, self.service.edges[0])[0] < self.target.goal_s

    def _has_news(self) -> bool:
        """Whether the load is another than the one planned for."""
        return not _are_near(self._load(), self._planned_for, _NEWS)

    def _load(self) -> tuple[float, ...]:
        kept = 1 + self.margin, 1.0 + self._is_flooded
        if self.arrivals.is_bursty:
            return kept
        return *kept, self.arrivals.rows_per_request, self.arrivals.rate

    @property
    def _is_flooded(self) -> bool:
        return self._refused > _FLOODED

    def _replan(self, seen: Observation) -> None:
        self._planned_s, self._planned_for = seen.now_s, self._load()
        self._has_plenty = False
        self.service.fit(seen.now_s)
        goal_s = self.target.goal_s if self.is_reachable else None
        caps = self._learn_caps(seen, goal_s)
        by_band = () if 0 in caps else tuple(sorted(caps.items()))
        if goal_s is None:
            self.plan, knobs = None, Knobs()
        else:
            knobs = self._aimed(goal_s, max(1, seen.replicas))
        self._knobs = replace(knobs, cap=max(caps.values()), caps=by_band)

    def _learn_caps(self, seen: Observation, goal_s: float | None) -> dict[int, int]:
        """Return the most rows of a batch by band; by 0 where requests are not padded."""
        curves, probe_s = self.bands.curves(seen.now_s), _BAND_PROBE_S
        if not curves:
            edge, _ = self.service.busiest()
            curves = {0: (self.service.table_s(edge), self.service.doubt_s(edge))}
            probe_s = _PROBE_S
        most = self.target.max_rows
        self._enough = {
            band: _enough(*curve, self._enough.get(band, most)) for band, curve in curves.items()
        }
        caps, rows = dict[int, int](), most
        for band, (table_s, doubt_s) in sorted(curves.items()):
            is_quick = goal_s is None and table_s[-1] < _QUICK_S
            least = most if is_quick else self._enough[band]
            # Longer requests gain no more from company, as far as nothing else is known.
            rows = min(least, rows) if doubt_s > 0 else least
            caps[band] = rows
        if self._probed_s == float("-inf"):
            self._probed_s = seen.now_s
        elif seen.now_s - self._probed_s >= probe_s and min(caps.values()) < most:
            # Whether larger batches pay can only be seen in larger batches.
            self._probed_s = seen.now_s
            self._planned_s = float("-inf")
            caps = {band: min(2 * rows, most) for band, rows in caps.items()}
        if goal_s is not None:
            caps = {band: _within(curves[band][0], rows, goal_s) for band, rows in caps.items()}
        self._caps = caps
        return caps

    def _aimed(self, goal_s: float, replicas: int) -> Knobs:
        """Plan for the goal."""
        edge, share = self.service.busiest()
        table_s = self.service.table_s(edge)
        cap = self._caps.get(band_of(edge) if edge else 0, max(self._caps.values()))
        group, noise = self.arrivals.rows_per_request, self.service.noise(edge)
        # Not for sizes that are uncertain because they were never seen: then they never would be.
        noise_s = min(_SURE * noise * table_s[cap], _MOST_SLACK * goal_s)
        slack_s = noise_s + _LEAST_SLACK * goal_s
        rates = [(weight, share * rate) for weight, rate in self.arrivals.rates()]
        load = Load(rates, group, table_s, min(noise, _MOST_NOISE), replicas)
        held_up_s = min(self.service.held_up_s(edge), _MOST_HELD_UP * goal_s)
        lone_s = table_s[min(cap, max(1, round(group)))]
        # The margin shortens waiting only: requests are not refused for what others made late.
        self.longest_s = max(0.0, (1 - self.margin) * goal_s - lone_s - slack_s - held_up_s)
        most = max(1, int(cap / group))
        plan = self.plan = self._chosen(load, goal_s, most)
        k = max(1, round(plan.k * group))
        return Knobs(
            k=cap if self._is_flooded else min(cap, k),
            tau_s=plan.tau_s,
            slack_s=slack_s,
            work_conserving=plan.k == 1,
            goal_s=goal_s,
            service=self.service.points(),
        )

    def _chosen(self, load: Load, goal_s: float, most: int) -> Plan:
        """Return the plan for this load, or the last one if it was made for next to the same."""
        table_s = load.table_s
        known = (
            *(self.longest_s, float(most), load.noise + 1, load.rows_per_request, load.replicas),
            *(table_s[1], table_s[len(table_s) // 4], table_s[-1]),
            *(one for pair in load.rates for one in pair),
        )
        if self.plan is None or not _are_near(known, self._planned_with, _NEAR):
            self._planned_with = known
            return choose(load, goal_s, self.longest_s, most, self.target.cpu_cost)
        return self.plan

    def _watch_lateness(self, seen: Observation) -> None:
        """Keep more of the goal free while more answers are late than the plan can explain."""
        if self.target.goal_s is None or not (asked := seen.requests + seen.refused_late):
            return
        share = asked / (asked + 1000)
        self._refused += share * (seen.refused_late / asked - self._refused)
        if not seen.requests:
            return
        late = sum(seen.latency[bisect_left(seen.bounds_us, self.target.goal_s * 1e6) + 1 :])
        share = seen.requests / (seen.requests + 1000)
        self._late += share * (late / seen.requests - self._late)
        if self._late > _MOST_LATE:
            self.margin = min(_MOST_MARGIN, self.margin + 0.02)
        else:
            self.margin = max(0.0, self.margin - 0.002)

    def why(self) -> str:
        """Say what was learnt and what follows from it."""
        if not self.service.edges:
            return "nothing has been served yet, so a batch leaves as soon as a replica is free"
        alpha_s, beta_s = self.service.line(self.service.busiest()[0])
        learnt = f"a batch takes {alpha_s * 1e3:.3g} ms and {beta_s * 1e3:.3g} ms per row"
        most = _most(self._caps)
        greedy = f"a batch leaves as soon as a replica is free, {most}"
        if self.target.goal_s is None:
            return f"{learnt}; without a latency goal {greedy}"
        goal = f"the goal of {self.target.goal_s * 1e3:g} ms"
        if not self.is_reachable:
            return f"{learnt}, more than {goal}; so {greedy}, and nothing is refused as late"
        rate = f"{self.arrivals.rate:.4g} requests/s"
        if self.plan is None or self.plan.k == 1:
            return f"{learnt}; at {rate} waiting for more costs more than it saves, so {greedy}"
        return (
            f"{learnt}; at {rate} it is cheapest to wait for {self._knobs.k} rows or"
            f" {self._knobs.tau_s * 1e3:.3g} ms within {goal}, {most}: expected are"
            f" {self.plan.busy:.0%} busy replicas and {self.plan.mean_s * 1e3:.3g} ms on average"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the models and the margin."""
        return {
            "service": self.service.to_plain(),
            "bands": self.bands.to_plain(),
            "arrivals": self.arrivals.to_plain(),
            "margin": self.margin,
        }

    def from_plain(self, plain: Mapping[str, Any]) -> None:
        """Take up the models; the plan follows with the first tick."""
        self.service.from_plain(plain["service"], 0.0)
        self.bands.from_plain(plain["bands"])
        self.arrivals.from_plain(plain["arrivals"])
        self.margin = float(plain["margin"])


def _are_near(some: tuple[float, ...], others: tuple[float, ...], share: float) -> bool:
    if len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        if abs(one - other) > share * max(one, other):
            return False
    return True


def _most(caps: Mapping[int, int]) -> str:
    """Say how many rows a batch may have, by length where that matters."""
    if set(caps.values()) == {1}:
        return "with one row, because larger batches are no faster per row"
    if len(set(caps.values())) == 1:
        return f"with at most {max(caps.values())} rows"
    listed = ", ".join(f"{rows} up to length {band}" for band, rows in sorted(caps.items()))
    return f"with at most so many rows: {listed}"


def _enough(table_s: list[float], doubt_s: float, former: int) -> int:
    """Return the fewest rows whose time per row is about as good as that of any batch.

    Powers of two up to a quarter of all rows, else all. What may be fixed for all that is known
    counts as fixed: batches are made smaller on evidence, and larger again on evidence. Where
    `doubt_s` is below 0, it is for the larger ones to have been seen to pay.
    """
    rows, most = 1, len(table_s) - 1
    sizes = (*range(1, most, 1 + most // _LOOKS), most)
    best_s = min([table_s[size] / size for size in sizes])
    doubted_s = min([(table_s[size] + doubt_s) / size for size in sizes])
    while 4 * rows <= most:
        worth = 1 + (_WORTH_OF_TWO if rows == 1 else _WORTH)
        is_new = rows < former or doubt_s < 0
        if table_s[rows] + is_new * doubt_s <= worth * rows * (doubted_s if is_new else best_s):
            return rows
        rows *= 2
    return most


def _within(table_s: list[float], cap: int, goal_s: float) -> int:
    """Return the most rows of which two batches, one after the other, keep the goal.

    Where that would cost much capacity, batches may take most of the goal; at least 1.
    """
    two, one = (
        next((rows for rows in range(cap, 1, -1) if share * table_s[rows] <= goal_s), 1)
        for share in (2.0, _ALONE)
    )
    return one if table_s[two] * one > _DEAR * table_s[one] * two else two
