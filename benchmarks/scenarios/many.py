"""150 small models in one repository: time until ready, memory, and whose answer comes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks import processes
from benchmarks.bench import Bench, answered_values
from benchmarks.models import model_path
from benchmarks.payloads import payload
from benchmarks.report import Goal, Section, Table
from benchmarks.versus.base import Served
from benchmarks.versus.lrai import LraiPeer

COUNT = 150
HOW = f"""{COUNT} MLPs of 30-64-32-2 that differ in their last bias, so that an answer tells
which model gave it. Ready: from exec until every model's readiness is 200. Each model is asked
once over JSON and once over binary before memory is read (proportional set size of all
processes)."""


def run(bench: Bench) -> Section:
    """lrai alone: what one process per model costs."""
    models = _build(bench)
    expected = bench.loop("mlp").answer().ravel()
    with LraiPeer(bench.cache).start(models) as peer:
        ready_mb = processes.memory_pss_bytes(peer.pids()) / 1e6
        started = time.monotonic()
        wrong = sum(
            not np.allclose(
                answered_values(peer, payload("mlp", face, served_as=model.name)),
                expected + index,
                atol=1e-3,
            )
            for index, model in enumerate(models)
            for face in ("json", "binary")
        )
        asking_s = time.monotonic() - started
        pids = peer.pids()
        asked_mb = processes.memory_pss_bytes(pids) / 1e6
    memory = [f"{ready_mb:.0f}", f"{asked_mb:.0f}"]
    row = [f"{peer.ready_seconds:.1f}", *memory, f"{asking_s:.2f}", str(wrong), str(len(pids))]
    columns = ["ready s", "PSS MB, ready", "PSS MB, asked", "asking each twice, s", "wrong answers"]
    data = {"ready_seconds": peer.ready_seconds, "pss_mb": [ready_mb, asked_mb], "wrong": wrong}
    return Section(
        name="many",
        title="Many small models",
        how=HOW,
        tables=[Table(f"{COUNT} models", [*columns, "processes"], [row])],
        goals=[
            Goal("all ready within 15 s", f"{peer.ready_seconds:.1f} s", peer.ready_seconds <= 15),
            Goal("PSS at most 700 MB", f"{asked_mb:.0f} MB", asked_mb <= 700),
            Goal("each answers as itself", f"{wrong} wrong answers", wrong == 0),
        ],
        notes=bench.notes,
        data=data,
    )


def _build(bench: Bench) -> Sequence[Served]:
    """Writes the models; number i adds i to both outputs."""
    folder: Path = bench.cache / "models" / "many"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = onnx.load(model_path(bench.cache, "mlp"))
    bias = next(
        weight for weight in model.graph.initializer if weight.name == model.graph.node[-1].input[2]
    )
    original = numpy_helper.to_array(bias)
    served = []
    for index in range(COUNT):
        shifted = (original + np.float32(index)).astype(np.float32)
        bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))
        path = folder / f"small{index:03}.onnx"
        onnx.save(model, path)
        served.append(Served(path.stem, path, 1))
    return served
