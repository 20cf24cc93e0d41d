"""ResNet-50 and the transformer: served throughput as a share of the session in a bare loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.bench import Bench, Sample, batch_counts
from benchmarks.payloads import Face, payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.versus.base import Peer
from benchmarks.versus.onnxruntime_loop import OnnxruntimeLoop

CONNECTIONS = 8
LEAST_SECONDS = 10.0
"""A batch takes a quarter of a second: shorter cells would count batches, not rates."""
PLAN: dict[str, tuple[Face, ...]] = {
    "resnet50": ("binary", "json"),
    "resnet50_int8": ("binary", "json"),
    "transformer": ("binary", "json", "grpc"),
}
GOALS: dict[tuple[str, Face], float] = {
    ("resnet50", "binary"): 0.95,
    ("transformer", "binary"): 0.95,
    ("resnet50", "json"): 0.85,
    ("resnet50_int8", "json"): 0.70,
}
HOW = f"""{CONNECTIONS} connections, closed loop. In each round every server is measured, and
right after lrai the same onnxruntime session (same threads, no spinning) in a loop in this
process, at the mean batch size that lrai formed in that very cell (rows / batches in its
statistics). The ratio is taken round by round. Random weights: the int8 figures are about speed
only."""
PEERS = ("lrai", "triton", "mlserver", "litserve")


@dataclass(frozen=True)
class _Round:
    """One cell of lrai, and the loop beside it."""

    sample: Sample
    rows_per_batch: float
    loop_rate: float

    @property
    def ratio(self) -> float:
        return self.sample.load.rate / self.loop_rate


def run(bench: Bench) -> Section:
    """One table per model."""
    tables, goals, data = [], [], []
    for model, faces in PLAN.items():
        ours, others = _measure(bench, model, faces)
        tables.append(_table(model, ours, others))
        for face, rounds in ours.items():
            ratio = Spread.of([found.ratio for found in rounds])
            wanted = GOALS.get((model, face))
            if wanted is not None:
                text = f"{model} over {face}: at least {wanted} of the loop without a server"
                goals.append(Goal(text, ratio.text(3), ratio.median >= wanted))
            data.append({"model": model, "face": face, "rounds": rounds})
        data += [{"model": model, "peer": key, "samples": found} for key, found in others.items()]
    return Section("heavy", "ResNet-50 and transformer", HOW, tables, goals, bench.notes, data)


def _measure(
    bench: Bench, model: str, faces: Sequence[Face]
) -> tuple[dict[Face, list[_Round]], dict[str, list[Sample]]]:
    """Rounds of lrai by face, and samples of the others by name and face."""
    ours: dict[Face, list[_Round]] = {}
    others: dict[str, list[Sample]] = {}
    loop = bench.loop(model)
    with bench.running(PEERS, [model]) as peers:
        for _ in range(bench.rounds):
            for face in faces:
                for peer in (peer for peer in peers.values() if face in peer.faces):
                    if peer.name == "lrai":
                        ours.setdefault(face, []).append(
                            _beside_loop(bench, peer, loop, model, face)
                        )
                    else:
                        found = _sample(bench, peer, model, face)
                        others.setdefault(f"{peer.name}, {face}", []).append(found)
    return ours, others


def _sample(bench: Bench, peer: Peer, model: str, face: Face) -> Sample:
    return bench.sample(peer, payload(model, face), CONNECTIONS, max(LEAST_SECONDS, bench.seconds))


def _beside_loop(bench: Bench, peer: Peer, loop: OnnxruntimeLoop, model: str, face: Face) -> _Round:
    rows_before, batches_before = batch_counts(peer, model)
    sample = _sample(bench, peer, model, face)
    rows, batches = batch_counts(peer, model)
    mean = (rows - rows_before) / max(1, batches - batches_before)
    return _Round(sample, mean, loop.rows_per_second(mean, bench.seconds))


def _table(model: str, ours: dict[Face, list[_Round]], others: dict[str, list[Sample]]) -> Table:
    rows = []
    for face, rounds in ours.items():
        cells = [found.sample for found in rounds]
        rows.append(
            [
                f"lrai, {face}",
                *_latencies(cells),
                Spread.of([found.rows_per_batch for found in rounds]).text(2),
                Spread.of([found.loop_rate for found in rounds]).text(1),
                Spread.of([found.ratio for found in rounds]).text(3),
            ]
        )
    rows += [[name, *_latencies(found), "-", "-", "-"] for name, found in others.items()]
    columns = ["server, face", "requests/s", "p50 ms", "p99 ms", "steal %"]
    return Table(model, [*columns, "rows per batch", "loop rows/s", "share of the loop"], rows)


def _latencies(samples: Sequence[Sample]) -> list[str]:
    return [
        Spread.of([sample.load.rate for sample in samples]).text(1),
        Spread.of([sample.load.p50_ms for sample in samples]).text(1),
        Spread.of([sample.load.p99_ms for sample in samples]).text(1),
        Spread.of([sample.steal_percent for sample in samples]).text(2),
    ]
