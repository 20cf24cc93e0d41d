"""Sequences of different lengths: buckets of the server against padding by the client.

`python -m benchmarks.ragged [--rounds N] [PART...]`, parts `encoder`, `ocr`. The
second one reads lines of text with the recogniser of the package `rapidocr`.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image, ImageDraw, ImageFont
from tritonclient.http import InferenceServerClient, InferInput

import lrai
from benchmarks.models import Array
from benchmarks.payloads import Payload, request
from benchmarks.report import ROOT, Goal, Section, Spread, Table, environment, write
from lrai.testing import ServerProcess, start_server
from lrai.testing.models import encoder

RESULTS = ROOT / "benchmarks" / "results"
CONNECTIONS = 32
LONGEST, SIGMA, MEDIAN = 512, 0.8, 60
SEQUENCES, LINES = 256, 96
ROWS = (8, 32)
WIDEST = 8
LESSONS = 3
TOLERANCE = 1e-4
WORDS = """batch queue the of an answer model length padding bucket reads and server quickly line
recogniser every word counts 2026 requests second measured twice width picture""".split()  # noqa: SIM905
HOW = f"""Closed loop over the binary face, {CONNECTIONS} sequences under way at any time, the same
sequences once and in the same order for every variant. One server with one engine thread per
model runs all of them, in turn in every round; the time is that until the last answer.
`buckets`: each request has its own length, the server pads to the edge of its bucket and cuts the
answers. `alone`: the same with padding = off, so that only equal lengths share a batch.
`client N`: the client takes N sequences as they come, pads them to the longest among them and
sends them as one request. `client max`: the client pads to the model's maximum, the server
batches as it likes. How many requests share a batch is learnt while they are served, so before the
first round `buckets` gets all sequences {LESSONS} times more. Numbers are medians over the rounds
(lowest-highest); ratios are taken round by round."""

Inputs = Mapping[str, Array]


@dataclass(frozen=True)
class Variant:
    """One way to send the same sequences."""

    name: str
    model: str
    batches: Sequence[Inputs]
    rows: int
    """Sequences of a request."""


@dataclass(frozen=True)
class Sample:
    """One round of one variant."""

    rate: float
    """Sequences per second."""
    cpu_ms: float
    """Processor time of the actor for each sequence."""


Samples = Mapping[str, Sequence[Sample]]
"""Those of each variant, round by round."""


@dataclass(frozen=True)
class Part:
    """What one model has shown."""

    name: str
    samples: Samples
    checks: Sequence[Goal]
    notes: Sequence[str]


def main() -> None:
    """Run the parts and write `ragged-PART.md` and `.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    settings = {"rounds": given.rounds, "connections": CONNECTIONS}
    where = environment("http.client of Python", {"lrai": lrai.__version__}, settings)
    command = " ".join(["python -m benchmarks.ragged", *(given.parts or PARTS)])
    command += f" --rounds {given.rounds}"
    parts = [PARTS[name](given.rounds) for name in given.parts or PARTS]
    section = Section(
        name="-".join(["ragged", *given.parts]),
        title="Ragged input",
        how=HOW,
        tables=[_table(part) for part in parts],
        goals=[goal for part in parts for goal in (*GOALS[part.name](part.samples), *part.checks)],
        notes=[note for part in parts for note in part.notes],
        data=[dataclasses.asdict(part) for part in parts],
    )
    write(RESULTS, section, dataclasses.replace(where, command=command))
    print((RESULTS / f"{section.name}.md").read_text())


def run_encoder(rounds: int) -> Part:
    """Measure a transformer encoder of 6 layers, 384 wide, on lengths of a log-normal law."""
    random = np.random.default_rng(11)
    lengths = np.clip(random.lognormal(np.log(MEDIAN), SIGMA, SEQUENCES), 1, LONGEST).astype(int)
    sequences = [_tokens(int(length), random) for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        path = encoder(Path(folder, "encoder.onnx"), 6, 384, 12, LONGEST)
        with _server(
            path, Path(folder, "models"), {"auto": "", "off": 'padding = "off"'}
        ) as server:
            checks = [_check_encoder(server, path, sequences)]
            variants = [
                Variant("buckets", "auto", sequences, 1),
                Variant("alone", "off", sequences, 1),
                Variant("client max", "off", _padded(sequences, LONGEST), 1),
                *(Variant(f"client {n}", "off", _grouped(sequences, n), n) for n in ROWS),
            ]
            samples = _measure(server, variants, rounds)
    spread = f"{lengths.min()} to {lengths.max()}, mean {lengths.mean():.0f}"
    return Part("encoder", samples, checks, [f"encoder: {SEQUENCES} sequences, lengths {spread}."])


def run_ocr(rounds: int) -> Part:
    """Measure the recogniser on lines of text, 48 pixels high and as wide as their text."""
    spec = find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: rapidocr is not installed. hint: pip install --no-deps rapidocr")
    path = Path(spec.submodule_search_locations[0], "models", "PP-OCRv6_rec_small.onnx")
    texts = _texts()
    lines = [{"x": _picture(text)} for text in texts]
    widths = [line["x"].shape[3] for line in lines]
    models = {
        "accept": 'padding = "accept"\n[knobs]\nedges = [16]',
        "auto": "",
        "off": 'padding = "off"',
    }
    with tempfile.TemporaryDirectory() as folder, _server(path, Path(folder), models) as server:
        checks = _check_ocr(server, path, lines, texts)
        variants = [
            Variant("buckets", "accept", lines, 1),
            Variant("alone", "off", lines, 1),
            Variant(f"client {WIDEST}", "off", _grouped(lines, WIDEST), WIDEST),
        ]
        samples = _measure(server, variants, rounds)
    spread = f"{min(widths)} to {max(widths)} pixels, mean {sum(widths) / len(widths):.0f}"
    note = f"ocr: {LINES} lines of text, {spread}; buckets are multiples of 16 pixels."
    return Part("ocr", samples, checks, [note])


@contextmanager
def _server(model: Path, folder: Path, settings: Mapping[str, str]) -> Iterator[ServerProcess]:
    """Serve one file under several names, each with `lrai.toml` of its own."""
    for name, text in settings.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").symlink_to(model)
        (folder / name / "lrai.toml").write_text(f"[model]\nthreads = 1\nreplicas = 1\n{text}\n")
    with start_server(folder) as server:
        yield server


def _measure(
    server: ServerProcess, variants: Sequence[Variant], rounds: int
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {variant.name: [] for variant in variants}
    for _ in range(LESSONS):
        _send(server, variants[0])
    for turn in range(rounds):
        for variant in (*variants[turn % len(variants) :], *variants[: turn % len(variants)]):
            sample = _send(server, variant)
            samples[variant.name].append(sample)
            print(f"{variant.name:12} {sample}", flush=True)
    return samples


def _send(server: ServerProcess, variant: Variant) -> Sample:
    """Send every request once, from as many connections as keep that many sequences under way."""
    texts = [request(variant.model, "binary", inputs) for inputs in variant.batches]
    threads = threading.local()

    def ask(payload: Payload) -> None:
        if not hasattr(threads, "connection"):
            threads.connection = http.client.HTTPConnection(server.http)
        threads.connection.request("POST", payload.path, payload.body, dict(payload.headers))
        answer = threads.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"error: {variant.name}: {body[:300]!r}")

    actor = server.actors(variant.model)[0]
    with ThreadPoolExecutor(max(1, CONNECTIONS // variant.rows)) as pool:
        list(pool.map(ask, texts[: CONNECTIONS // variant.rows]))
        began_s, used_s = time.perf_counter(), _cpu_s(actor)
        list(pool.map(ask, texts))
        seconds, used_s = time.perf_counter() - began_s, _cpu_s(actor) - used_s
    count = variant.rows * len(texts)
    return Sample(count / seconds, 1000 * used_s / count)


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process, all its threads together."""
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")


def _tokens(length: int, random: np.random.Generator) -> dict[str, Array]:
    tokens = random.integers(1, 1000, (1, length))
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}


def _padded(sequences: Sequence[Inputs], length: int) -> list[Inputs]:
    """Every sequence with zeros behind it up to `length`, which is its last dimension."""

    def pad(array: Array) -> Array:
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])])

    return [{name: pad(array) for name, array in inputs.items()} for inputs in sequences]


def _grouped(sequences: Sequence[Inputs], rows: int) -> list[Inputs]:
    """Requests of so many sequences, each padded to the longest among them."""
    groups = []
    for start in range(0, len(sequences), rows):
        group = sequences[start : start + rows]
        longest = max(array.shape[-1] for inputs in group for array in inputs.values())
        padded = _padded(group, longest)
        groups.append({name: np.concatenate([one[name] for one in padded]) for name in group[0]})
    return groups


def _ask_all(server: ServerProcess, model: str, batches: Sequence[Inputs]) -> list[list[Array]]:
    """Send all at once, as many as there are connections; return each one's outputs."""

    def ask(inputs: Inputs) -> list[Array]:
        # The client is bound to its thread.
        client, tensors = InferenceServerClient(server.http), []
        for name, array in inputs.items():
            kind = "INT64" if array.dtype.kind == "i" else "FP32"
            tensors.append(InferInput(name, list(array.shape), kind).set_data_from_numpy(array))
        answer = client.infer(model, tensors)
        return [answer.as_numpy(one["name"]) for one in answer.get_response()["outputs"]]

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(ask, batches))


def _check_encoder(server: ServerProcess, path: Path, sequences: Sequence[Inputs]) -> Goal:
    """Hold the answers of padded batches against onnxruntime on every sequence alone."""
    session = onnxruntime.InferenceSession(path)
    answers = _ask_all(server, "auto", sequences)
    errors = [
        float(np.abs(got - expected).max()) if got.shape == expected.shape else np.inf
        for inputs, answer in zip(sequences, answers, strict=True)
        for got, expected in zip(answer, session.run(None, dict(inputs)), strict=True)
    ]
    text = f"encoder: answers equal within {TOLERANCE:g} to onnxruntime without padding"
    return Goal(text, f"{max(errors):.2g}", max(errors) <= TOLERANCE)


def _check_ocr(
    server: ServerProcess, path: Path, lines: Sequence[Inputs], texts: Sequence[str]
) -> list[Goal]:
    """Hold the texts of padded batches against those of lines alone; read the load check's word."""
    letters = onnx.load(path).metadata_props[0].value.split("\n")
    padded, alone = (
        [_read(answer[0][0], letters) for answer in _ask_all(server, model, lines)]
        for model in ("accept", "off")
    )
    same = sum(one == other for one, other in zip(padded, alone, strict=True))
    right = sum(one == text for one, text in zip(alone, texts, strict=True))
    notes = [row["message"] for row in server.events("model_note")]
    refused = [note for note in notes if "'auto'" in note and "differs" in note]
    return [
        Goal(
            "ocr: the same text as from lines alone",
            f"{same} of {len(lines)} ({right} as written)",
            same == len(lines),
        ),
        Goal(
            "ocr: the load check refuses to pad unless the user accepts",
            refused[0].replace("|", " ") if refused else "no word",
            bool(refused),
        ),
    ]


def _read(scores: Array, letters: Sequence[str]) -> str:
    """Read a line: the best letter of each column, repeats and blanks left out."""
    best = scores.argmax(axis=1)
    return "".join(["", *letters, " "][code] for code in best[np.diff(best, prepend=-1) != 0])


def _texts() -> list[str]:
    random = np.random.default_rng(5)
    counts = np.clip(random.lognormal(np.log(3), 0.6, LINES), 1, 12).astype(int)
    return [" ".join(random.choice(WORDS, count)) for count in counts]


def _picture(text: str) -> Array:
    """A line of text, 48 pixels high: `[1, 3, 48, width]`, FP32, -1 to 1."""
    font = ImageFont.load_default(30)
    width = int(font.getlength(text)) + 16
    picture = Image.new("RGB", (width, 48), "white")
    ImageDraw.Draw(picture).text((8, 5), text, "black", font)
    pixels: Array = np.asarray(picture, np.float32).transpose(2, 0, 1)[np.newaxis]
    return np.ascontiguousarray(pixels / 127.5 - 1)


def _table(part: Part) -> Table:
    rows = [
        [
            name,
            Spread.of([sample.rate for sample in samples]).text(1),
            _ratio(part.samples, name).text(2),
            Spread.of([sample.cpu_ms for sample in samples]).text(1),
        ]
        for name, samples in part.samples.items()
    ]
    return Table(
        part.name, ("variant", "sequences/s", "buckets / this", "actor's CPU ms each"), rows
    )


def _ratio(samples: Samples, name: str) -> Spread:
    pairs = zip(samples["buckets"], samples[name], strict=True)
    return Spread.of([buckets.rate / other.rate for buckets, other in pairs])


def _goal(samples: Samples, name: str, least: float, text: str) -> Goal:
    spread = _ratio(samples, name)
    return Goal(text, spread.text(2), spread.median >= least)


def _encoder_goals(samples: Samples) -> list[Goal]:
    text = "encoder: at least 1.8x the throughput of padding to the"
    return [
        *(_goal(samples, f"client {n}", 1.8, f"{text} longest of {n}") for n in ROWS),
        _goal(samples, "client max", 1.8, f"{text} maximum of {LONGEST}"),
    ]


def _ocr_goals(samples: Samples) -> list[Goal]:
    widest = f"ocr: at least 1.5x the throughput of padding to the widest of {WIDEST}"
    return [
        _goal(samples, f"client {WIDEST}", 1.5, widest),
        _goal(samples, "alone", 1.0, "ocr: not below serving each line alone"),
    ]


PARTS: Mapping[str, Callable[[int], Part]] = {"encoder": run_encoder, "ocr": run_ocr}
GOALS: Mapping[str, Callable[[Samples], list[Goal]]] = {
    "encoder": _encoder_goals,
    "ocr": _ocr_goals,
}


if __name__ == "__main__":
    main()
