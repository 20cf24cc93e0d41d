"""`make demo`: train, serve, ask, kill a model process meanwhile, and check every answer.

The exit code says whether all went well. Everything it writes lies in a temporary folder.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from demo_clients import CLIENTS, Ask
from demo_models import Trained, train

REQUESTS = 300
KILLS = 4
TOLERANCE = 1e-4
START_LIMIT_S = 60
console = Console(highlight=False)


@dataclass
class Tally:
    """What one stream of requests saw."""

    latencies_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether every request got the right answer."""
        return bool(self.latencies_ms) and not self.wrong and not self.errors

    def percentile(self, share: float) -> str:
        """A latency that this share of the requests did not exceed."""
        return f"{np.quantile(self.latencies_ms, share):.2f}" if self.latencies_ms else "-"


@dataclass(frozen=True)
class Server:
    """A running `lrai serve` and where it listens."""

    process: subprocess.Popen[bytes]
    addresses: dict[str, str]
    ready_s: float

    def actor(self, model: str) -> int:
        """The server's child whose title names the model; 0 = there is none."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                title = folder.joinpath("cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if parent == self.process.pid and model in title and "standby" not in title:
                return int(folder.name)
        return 0


@contextmanager
def serving(repository: Path, log: Path) -> Iterator[Server]:
    """Start `lrai serve` on free ports, wait until it is ready, and stop it at the end."""
    program = Path(sys.executable).with_name("lrai")
    command = [str(program), "serve", str(repository), "--log-format", "json"]
    ports = [f"--{face}-port=0" for face in ("http", "grpc", "metrics")]
    started = time.monotonic()
    with log.open("wb") as lines:
        process = subprocess.Popen([*command, *ports], stderr=lines)
    try:
        addresses = wait_for(process, log, "listening")
        wait_for(process, log, "settled")
        yield Server(process, addresses, time.monotonic() - started)
    finally:
        process.terminate()
        process.wait(timeout=40)


def wait_for(process: subprocess.Popen[bytes], log: Path, event: str) -> dict[str, str]:
    """The first line of the server's log that tells of this event."""
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.endswith("}") and json.loads(line).get("event") == event:
                found: dict[str, str] = json.loads(line)
                return found
        time.sleep(0.01)
    sys.exit(f"error: the server did not start; its log says\n{log.read_text()}")


def send(ask: Ask, model: Trained, number: int, tally: Tally) -> None:
    """Send one request of 1 to 8 unseen rows and compare the answer with the trained model's."""
    first = number * 7 % len(model.rows)
    some = slice(first, first + 1 + number % 8)
    started = time.perf_counter()
    try:
        answer = ask(model.rows[some])
    except Exception as error:  # noqa: BLE001, whatever a client raises is a failed request
        tally.errors.append(repr(error))
        return
    tally.latencies_ms.append((time.perf_counter() - started) * 1e3)
    tally.wrong += not np.allclose(answer, model.expected[some], atol=TOLERANCE)


def ask_everything(server: Server, models: list[Trained]) -> Iterator[tuple[str, str, Tally]]:
    """Every model through every client."""
    for model in models:
        for name, (face, connect) in CLIENTS.items():
            tally = Tally()
            ask = connect(server.addresses[face], model)
            for number in range(REQUESTS):
                send(ask, model, number, tally)
            yield model.name, name, tally


def flow(server: Server, model: Trained, client: str, stop: threading.Event, tally: Tally) -> None:
    """Ask without a pause until told to stop."""
    face, connect = CLIENTS[client]
    ask = connect(server.addresses[face], model)
    number = 0
    while not stop.is_set():
        send(ask, model, number, tally)
        number += 1


def kill_meanwhile(server: Server, models: list[Trained]) -> Iterator[tuple[str, str, Tally]]:
    """Kill the first model's actor again and again while both models are asked."""
    streams = [(model, name) for model in models for name in list(CLIENTS)[1:]]
    tallies = [Tally() for _ in streams]
    stop = threading.Event()
    threads = [
        threading.Thread(target=flow, args=(server, *stream, stop, tally))
        for stream, tally in zip(streams, tallies, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(KILLS):
            time.sleep(0.8)
            console.print("  " + kill_actor(server, models[0].name))
        time.sleep(0.8)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for (model, name), tally in zip(streams, tallies, strict=True):
        yield f"{model.name} {'killed' if model is models[0] else 'beside'}", name, tally


def kill_actor(server: Server, model: str) -> str:
    """SIGKILL the model's actor and wait until another one has taken its place."""
    victim = server.actor(model)
    if not victim:
        sys.exit(f"error: no process of the server is named after the model {model!r}")
    title = Path(f"/proc/{victim}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    while server.actor(model) in (0, victim) and time.monotonic() < started + START_LIMIT_S:
        time.sleep(0.001)
    took_ms = (time.monotonic() - started) * 1e3
    return f"kill -9 {victim} ({title}): process {server.actor(model)} after {took_ms:.0f} ms"


def show(results: list[tuple[str, str, Tally]]) -> None:
    """Print the table of answers and latencies."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("model", "client"):
        table.add_column(column, no_wrap=True)
    for column in ("answers", "wrong", "failed", "p50 ms", "p99 ms", "slowest"):
        table.add_column(column, justify="right", no_wrap=True)
    for model, client, tally in results:
        counts = (len(tally.latencies_ms), tally.wrong, len(tally.errors))
        times = (tally.percentile(share) for share in (0.5, 0.99, 1.0))
        style = None if tally.is_clean else "bold red"
        table.add_row(model, client, *map(str, counts), *times, style=style)
    console.print(table)


def main() -> int:
    """Run the demo; 0 if every request got the right answer and the server ended well."""
    with tempfile.TemporaryDirectory(prefix="lrai-demo-") as folder:
        repository, log = Path(folder, "models"), Path(folder, "server.log")
        console.print("[bold]1. train[/] two small models on data that scikit-learn ships")
        models = train(repository)
        for model in models:
            console.print(f"  {model.name}: {model.story}")
        console.print("[bold]2. serve[/] them: lrai serve models/")
        with serving(repository, log) as server:
            console.print(f"  ready after {server.ready_s:.2f} s on {server.addresses['http']}")
            console.print("[bold]3. ask[/] with three clients")
            results = list(ask_everything(server, models))
            console.print("[bold]4. kill[/] an actor while requests flow")
            results += kill_meanwhile(server, models)
        console.print(f"[bold]5. stop[/]: exit code {server.process.returncode}")
        show(results)
        good = all(tally.is_clean for *_, tally in results) and not server.process.returncode
        for *_, tally in results:
            for error in tally.errors[:3]:
                console.print(f"  failed: {error}")
        if not good:
            console.print(log.read_text()[-4000:], markup=False)
    answers = sum(len(tally.latencies_ms) for *_, tally in results)
    end = (
        f"{answers} answers, all equal to the trained models', while {KILLS} processes were killed"
    )
    console.print(f"[bold green]{end}[/]" if good else "[bold red]something failed[/]")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
