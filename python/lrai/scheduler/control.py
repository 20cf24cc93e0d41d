"""The control loop: ten times a second, what was seen of each busy model becomes its knobs."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lrai.config import SchedulerConfig
from lrai.scheduler.buckets import LengthModel
from lrai.scheduler.history import Digest, History, Record, has_slowed, in_ms
from lrai.scheduler.knobs import Knobs
from lrai.scheduler.model_based import ModelBased
from lrai.scheduler.observation import Counters, Window, observe
from lrai.scheduler.policies import POLICIES
from lrai.scheduler.policy import Policy, Target
from lrai.scheduler.static import Greedy, Static
from lrai.scheduler.store import Store

_SAVE_S: Final = 60.0
_KEPT_DIGESTS: Final = 32
_SHOWN_RECORDS: Final = 30
_LEAST_REQUESTS: Final = 100
# Differences that are not worth telling the data plane.
_SAME: Final = 0.05


@dataclass(frozen=True)
class Subject:
    """A model version as the scheduler knows it."""

    name: str
    version: str
    max_rows: int
    replicas: int = 1
    longest: int = 0
    """No request is padded beyond this length; 0 = lengths are not for us to group."""


@dataclass(frozen=True)
class Notice:
    """Something that a person, or another part of the server, may want to act on."""

    kind: str
    """latency_alert, latency_back, goal_unreachable, retune, policy_failed, learnt_ignored or
    state_lost."""
    subject: Subject
    message: str
    fields: dict[str, object] = field(default_factory=dict)


class Controller:
    """Steers one model version."""

    def __init__(
        self, subject: Subject, policy: Policy, config: SchedulerConfig, digests: Iterable[Digest]
    ) -> None:
        """Begin with the policy's first knobs."""
        self.subject, self.policy, self.config = subject, policy, config
        self.history = History()
        self.digests = deque(digests, _KEPT_DIGESTS)
        self.knobs = self._wanted = policy.first()
        self._lengths = LengthModel(subject.longest) if subject.longest else None
        self.notices: list[Notice] = []
        """To be taken by the scheduler after each tick."""
        self.ended: deque[Digest] = deque(maxlen=_KEPT_DIGESTS)
        """Days that are to be kept."""
        self._counters = Counters(0.0)
        self._is_alarmed = self._is_told = False

    def tick(self, window: Window, since_s: float, now_s: float, day: int) -> Knobs | None:
        """Take in a window; return new knobs, or None if they stay."""
        if self._counters.now_s < since_s:
            self._counters = self._counters._replace(now_s=since_s)
        seen, self._counters = observe(window, self._counters, now_s)
        former, self._wanted = self._wanted, self.policy.decide(seen)
        wanted = self._wanted
        if self._lengths and (self._lengths.update(seen.lengths) or wanted is not former):
            wanted = replace(wanted, edges=self._lengths.edges)
        is_new = wanted is not former and not _is_same(wanted, self.knobs)
        if is_new:
            self.knobs = wanted
        if self.history.add(seen, self._counters, self.knobs, is_new):
            self._look(seen.bounds_us, day)
        return self.knobs if is_new else None

    def retreat(self, error: Exception) -> None:
        """Go on greedily after a failure, and say so."""
        self.policy = Greedy(self.policy.target)
        self._notice("policy_failed", f"its knobs are no longer tuned: {error!r}")

    def _look(self, bounds_us: tuple[int, ...], day: int) -> None:
        """Once a second: is the goal kept, can it be, has a day ended?"""
        goal_s, p99_s = self.policy.target.goal_s, self.history.p99_s
        if goal_s and p99_s and self.history.requests >= _LEAST_REQUESTS:
            if not self._is_alarmed and p99_s > self.config.alert_factor * goal_s:
                self._is_alarmed = True
                self._notice("latency_alert", _against(p99_s, goal_s), p99_s=p99_s, goal_s=goal_s)
            elif self._is_alarmed and p99_s <= min(1.0, self.config.alert_factor) * goal_s:
                self._is_alarmed = False
                self._notice("latency_back", _against(p99_s, goal_s), p99_s=p99_s, goal_s=goal_s)
        policy = self.policy
        if not self._is_told and isinstance(policy, ModelBased) and policy.is_reachable is False:
            self._is_told = True
            self._notice("goal_unreachable", policy.why(), goal_s=goal_s)
        if digest := self.history.turn(day, self._counters, bounds_us):
            self.digests.append(digest)
            self.ended.append(digest)
            days, rise = self.config.slower_days, self.config.slower_by
            if has_slowed(tuple(self.digests), days, rise):
                message = f"p99 has been {rise:.0%} above what it was, {days} days running"
                self._notice("retune", message, p99_s=digest.p99_s)

    def _notice(self, kind: str, message: str, **fields: object) -> None:
        self.notices.append(Notice(kind, self.subject, message, fields))

    def why(self, now_s: float) -> dict[str, Any]:
        """Return what is known, set and wanted, as JSON can carry it; times in milliseconds."""
        goal_s, history = self.policy.target.goal_s, self.history
        return {
            "name": self.subject.name,
            "version": self.subject.version,
            "policy": self.policy.name,
            "why": self.policy.why(),
            "latency_goal_ms": in_ms(goal_s),
            "p99_ms": in_ms(history.p99_s),
            "requests_in_10_s": history.requests,
            "idle_s": round(now_s - self._counters.now_s, 1) if history.requests else None,
            "knobs": _plain(self.knobs),
            "seen": [_record(one, now_s) for one in list(history.records)[-_SHOWN_RECORDS:]],
            "days": [one._asdict() for one in self.digests],
        }


class Scheduler:
    """Steers all models; a model without traffic costs nothing."""

    def __init__(
        self,
        set_knobs: Callable[[int, str], None],
        tell: Callable[[Notice], None],
        store: Store | None = None,
    ) -> None:
        """`set_knobs` gets a model's key and JSON text; `tell` everything that is noticed."""
        self._set_knobs, self._tell, self._store = set_knobs, tell, store
        self.store = store
        """Where other parts keep what they learn of a model."""
        self._controllers: dict[int, Controller] = {}
        self._touched: set[int] = set()
        self._ticked_s = self._saved_s = 0.0

    def add(
        self, key: int, subject: Subject, config: SchedulerConfig, fixed: Knobs | None = None
    ) -> None:
        """Steer a model from now on; with `fixed` knobs it keeps those.

        Raises what `set_knobs` raises.
        """
        goal_s = config.latency_goal_s or None
        target = Target(goal_s, max(1, subject.max_rows), config.cpu_cost, subject.replicas)
        policy = Static(target, fixed) if fixed else POLICIES[config.policy](target)
        policy, digests = self._taught(policy, subject)
        controller = Controller(subject, policy, config, digests)
        self._set_knobs(key, controller.knobs.to_json())
        self._controllers[key] = controller

    def _taught(self, policy: Policy, subject: Subject) -> tuple[Policy, list[Digest]]:
        """Return the policy with what was kept of it, and past days; without what is unreadable."""
        digests: list[Digest] = []
        try:
            if self._store:
                digests = self._store.digests(subject.name, subject.version, _KEPT_DIGESTS)
                plain = self._store.learnt(subject.name, subject.version, policy.name)
                if plain:
                    policy.from_plain(plain)
        except Exception as error:  # noqa: BLE001, a model is served without it too
            self._tell(
                Notice("learnt_ignored", subject, f"what was learnt is unreadable: {error!r}")
            )
            policy = type(policy)(policy.target)
        return policy, digests

    def remove(self, key: int) -> None:
        """Forget a model; what was learnt of it is kept."""
        self._touched.discard(key)
        if controller := self._controllers.pop(key, None):
            self._keep([controller])

    def tick(self, now_s: float, windows: Iterable[Window], day: int) -> None:
        """Look at the models that had traffic; `now_s` only grows, `day` counts from 1970."""
        for window in windows:
            controller = self._controllers.get(window.key)
            if controller is None:
                continue
            try:
                knobs = controller.tick(window, self._ticked_s, now_s, day)
                if knobs is not None:
                    self._set_knobs(window.key, knobs.to_json())
            except Exception as error:  # noqa: BLE001, one model's policy fails alone
                controller.retreat(error)
            self._touched.add(window.key)
            for notice in controller.notices:
                self._tell(notice)
            controller.notices.clear()
        self._ticked_s = now_s
        if self._store and self._touched and now_s - self._saved_s >= _SAVE_S:
            self._saved_s = now_s
            self.save()

    def why(self, name: str, version: str = "") -> dict[str, Any] | None:
        """Return what is known of a model's latest version, or of one; None if it is not served."""
        found = [
            one.why(self._ticked_s)
            for one in self._controllers.values()
            if one.subject.name == name and version in ("", one.subject.version)
        ]
        return max(found, key=lambda one: (len(one["version"]), one["version"]), default=None)

    def save(self) -> None:
        """Keep what was learnt since the last time."""
        self._keep([self._controllers[key] for key in self._touched])
        self._touched.clear()

    def close(self) -> None:
        """Keep everything and let go of the file."""
        if self._store:
            self.save()
            self._store.close()

    def _keep(self, controllers: Iterable[Controller]) -> None:
        """Write down what was learnt, and the days that have ended; if that fails, say so."""
        if self._store is None:
            return
        for one in controllers:
            name, version = one.subject.name, one.subject.version
            try:
                self._store.keep(name, version, one.policy.name, one.policy.to_plain(), one.ended)
            except Exception as error:  # noqa: BLE001, serving goes on without it
                why = f"what was learnt is not kept: {error}, hint: look at the folder of --state"
                self._tell(Notice("state_lost", one.subject, why))
                return
            one.ended.clear()


def _is_same(one: Knobs, other: Knobs) -> bool:
    if not (
        (one.k, one.cap, one.work_conserving) == (other.k, other.cap, other.work_conserving)
        and (one.goal_s, one.edges, one.token_budget)
        == (other.goal_s, other.edges, other.token_budget)
        and len(one.service) == len(other.service)
    ):
        return False
    pairs = [(one.tau_s, other.tau_s), (one.slack_s, other.slack_s)]
    pairs += [(a[2], b[2]) for a, b in zip(one.service, other.service, strict=True)]
    return all(abs(a - b) <= _SAME * max(a, b) for a, b in pairs)


def _against(p99_s: float, goal_s: float) -> str:
    return f"p99 over 10 s is {p99_s * 1e3:.3g} ms against a goal of {goal_s * 1e3:g} ms"


def _record(record: Record, now_s: float) -> dict[str, Any]:
    plain = record._asdict()
    return {"ago_s": round(now_s - plain.pop("at_s"), 1), **plain}


def _plain(knobs: Knobs) -> dict[str, Any]:
    return {
        "k": knobs.k,
        "cap": knobs.cap,
        "tau_ms": in_ms(knobs.tau_s),
        "slack_ms": in_ms(knobs.slack_s),
        "work_conserving": knobs.work_conserving,
        "goal_ms": in_ms(knobs.goal_s),
        "edges": knobs.edges,
        "token_budget": knobs.token_budget,
        "caps": knobs.caps,
    }
