"""Measures a model in processes of its own, which serve nobody and give way to everybody."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

from lrai.actors.actor import Actor
from lrai.actors.messages import ActorSpec
from lrai.actors.supervisor import Supervisor
from lrai.actors.trial_messages import TrialMessage, TrialResult
from lrai.backends.base import Padding
from lrai.core.model import Allocation
from lrai.core.plain import from_plain
from lrai.errors import ModelLoadError
from lrai.scheduler.allocation import Measured, Point

_SECONDS: Final = 0.15
# Fewer undisturbed batches say nothing.
_LEAST_BATCHES: Final = 3
_LEAST_SHARE: Final = 0.5
# A trial runs only when nobody else does, which may be never.
_PATIENCE_S: Final = 20.0
# Larger batches are not measured when they would take longer.
_LONGEST_S: Final = 0.25

Shapes = tuple[tuple[int, ...], ...]
"""Of all inputs, batch dimension included."""


class BusyMachineError(Exception):
    """Others kept the processors busy, so that what was measured would say nothing."""


async def probe(
    supervisor: Supervisor, spec: ActorSpec, allocation: Allocation, shapes: Shapes
) -> TrialResult:
    """Run a lone row on one replica; only the processor time is right on a busy machine.

    Raises `ModelLoadError` if the model cannot be measured, `BusyMachineError` if its process got
    nowhere.
    """
    async with _trials(supervisor, spec, allocation._replace(replicas=1)) as actors:
        return await _run(actors, shapes)


async def measure(
    supervisor: Supervisor, spec: ActorSpec, allocation: Allocation, sizes: Mapping[int, Shapes]
) -> Measured:
    """Return the times of batches of these shapes, by rows, ascending from one.

    All replicas run at once but for the lone row. Raises what `probe` does; `BusyMachineError` also
    if the processors were wanted by others.
    """
    points: list[Point] = []
    async with _trials(supervisor, spec, allocation) as actors:
        # Replicas that take turns do not show what they take from each other, nor do threads that
        # leave their part to the first one show what they give.
        least = _LEAST_SHARE if max(allocation) > 1 else 0.0
        single = await _run(actors[:1], sizes[1])
        for rows, shapes in sizes.items():
            if points and points[-1].batch_s * rows > _LONGEST_S * points[-1].rows:
                break
            result = single if len(actors) == 1 and not points else await _run(actors, shapes)
            for one in (single, result):
                if one.undisturbed < max(_LEAST_BATCHES, least * one.runs):
                    raise BusyMachineError
            points.append(Point(rows, result.batch_s, result.cpu_s))
    return Measured(single.batch_s, tuple(points))


@asynccontextmanager
async def _trials(
    supervisor: Supervisor, spec: ActorSpec, allocation: Allocation
) -> AsyncIterator[list[Actor]]:
    model = replace(spec.model, threads=allocation.threads, padding=Padding())
    trial = replace(spec, model=model, is_trial=True)
    actors: list[Actor] = []
    try:
        for number in range(allocation.replicas):
            # One by one, so that those who have come end too when one does not.
            actors.append(await supervisor.load(trial, number))  # noqa: PERF401
        yield actors
    except TimeoutError as error:
        raise BusyMachineError from error
    finally:
        for actor in actors:
            actor.dismiss()
        await asyncio.gather(*(asyncio.shield(actor.gone) for actor in actors))


async def ask(trial: Actor, asked: TrialMessage) -> TrialResult:
    """Have a trial run batches of one size.

    Raises `ModelLoadError` if it dies or the model fails, `TimeoutError` if it gets nowhere.
    """
    trial.measured = asyncio.get_running_loop().create_future()
    with suppress(OSError):  # Its end tells why.
        trial.link.send(asked.encode())
    waiting = (trial.measured, trial.gone)
    await asyncio.wait(waiting, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    if trial.gone.done():
        end = trial.gone.result()
        raise ModelLoadError(f"its process {end.words}", hint=end.hint)
    if not trial.measured.done():
        raise TimeoutError
    result = from_plain(TrialResult, trial.measured.result())
    if result.error:
        raise ModelLoadError(f"it refuses made-up inputs: {result.error}")
    return result


async def _run(trials: Sequence[Actor], shapes: Shapes) -> TrialResult:
    """Have all run at once; return the means of their times, and the worst of the rest."""
    asked = TrialMessage(shapes, _SECONDS)
    results = await asyncio.gather(*(ask(trial, asked) for trial in trials))
    return TrialResult(
        batch_s=sum(one.batch_s for one in results) / len(results),
        cpu_s=sum(one.cpu_s for one in results) / len(results),
        used_bytes=max(one.used_bytes for one in results),
        runs=max(one.runs for one in results),
        undisturbed=min(one.undisturbed for one in results),
    )
