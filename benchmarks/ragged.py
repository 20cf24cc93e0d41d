"""Sequences of different lengths: buckets of the server against padding by the client.

`python -m benchmarks.ragged [--rounds N] [--seconds S] [PART...]`, parts `encoder`, `ocr`. The
second one reads lines of text with the recogniser of the package `rapidocr`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
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

from benchmarks.models import Array
from benchmarks.payloads import request
from benchmarks.report import ROOT, Goal, Section, Spread, Table, environment, write
from lrai import _native
from lrai.testing import ServerProcess, start_server
from lrai.testing.models import encoder

RESULTS = ROOT / "benchmarks" / "results"
CONNECTIONS = 32
LONGEST, SIGMA, MEDIAN = 512, 0.8, 60
SEQUENCES, LINES = 256, 96
ROWS = (8, 32)
WIDEST = 8
TOLERANCE = 1e-4
WORDS = [
    "batch",
    "queue",
    "the",
    "of",
    "an",
    "answer",
    "model",
    "length",
    "padding",
    "bucket",
    "reads",
    "and",
    "server",
    "quickly",
    "line",
    "recogniser",
    "every",
    "word",
    "counts",
    "2026",
    "requests",
    "second",
    "measured",
    "twice",
    "width",
    "picture",
]
HOW = f"""Closed loop over the binary face, {CONNECTIONS} sequences under way at any time, the same
sequences in the same order for every variant. One server runs all of them, measured in turn in
every round. `buckets`: each request has its own length, the server pads to the edge of its bucket
and cuts the answers. `alone`: the same with padding = off, so that only equal lengths share a
batch. `client N`: the client takes N sequences as they come, pads them to the longest among them
and sends them as one request. `client max`: the client pads to the model's maximum, the server
batches as it likes. Numbers are medians over the rounds (lowest-highest); ratios are taken round
by round."""

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
class Part:
    """What one model has shown."""

    name: str
    rates: Mapping[str, Sequence[float]]
    """Sequences per second of each variant, round by round."""
    checks: Sequence[Goal]
    notes: Sequence[str]


def main() -> None:
    """Run the parts and write `ragged.md` and `ragged.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    given = parser.parse_args()
    settings = {"rounds": given.rounds, "seconds": given.seconds, "connections": CONNECTIONS}
    client = f"lrai's load generator {_native.__version__} (native, one thread)"
    where = environment(client, {"lrai": _native.__version__}, settings)
    command = " ".join(["python -m benchmarks.ragged", *(given.parts or PARTS)])
    command += f" --rounds {given.rounds} --seconds {given.seconds:g}"
    parts = [PARTS[name](given.rounds, given.seconds) for name in given.parts or PARTS]
    section = Section(
        name="ragged",
        title="Ragged input",
        how=HOW,
        tables=[_table(part) for part in parts],
        goals=[goal for part in parts for goal in (*GOALS[part.name](part.rates), *part.checks)],
        notes=[note for part in parts for note in part.notes],
        data=[dataclasses.asdict(part) for part in parts],
    )
    write(RESULTS, section, dataclasses.replace(where, command=command))
    print((RESULTS / "ragged.md").read_text())


def run_encoder(rounds: int, seconds: float) -> Part:
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
            rates = _measure(server, variants, rounds, seconds)
    spread = f"{lengths.min()} to {lengths.max()}, mean {lengths.mean():.0f}"
    return Part("encoder", rates, checks, [f"encoder: {SEQUENCES} sequences, lengths {spread}."])


def run_ocr(rounds: int, seconds: float) -> Part:
    """Measure the recogniser on lines of text, 48 pixels high and as wide as their text."""
    spec = find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: rapidocr is not installed. hint: pip install --no-deps rapidocr")
    path = Path(spec.submodule_search_locations[0], "models", "PP-OCRv6_rec_small.onnx")
    texts = _texts()
    lines = [{"x": _picture(text)} for text in texts]
    widths = [line["x"].shape[3] for line in lines]
    models = {
        "accept": 'padding = "accept"\n[knobs]\nedges = [32]',
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
        rates = _measure(server, variants, rounds, seconds)
    spread = f"{min(widths)} to {max(widths)} pixels, mean {sum(widths) / len(widths):.0f}"
    note = f"ocr: {LINES} lines of text, {spread}; buckets are multiples of 32 pixels."
    return Part("ocr", rates, checks, [note])


@contextmanager
def _server(model: Path, folder: Path, settings: Mapping[str, str]) -> Iterator[ServerProcess]:
    """Serve one file under several names, each with `lrai.toml` of its own."""
    for name, text in settings.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").symlink_to(model)
        (folder / name / "lrai.toml").write_text(f"[model]\n{text}\n")
    with start_server(folder) as server:
        yield server


def _measure(
    server: ServerProcess, variants: Sequence[Variant], rounds: int, seconds: float
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(rounds):
        for variant in (*variants[turn % len(variants) :], *variants[: turn % len(variants)]):
            _send(server, variant, 1.0)
            rates[variant.name].append(_send(server, variant, seconds) * variant.rows)
            print(f"{variant.name:12} {rates[variant.name][-1]:8.1f}/s", flush=True)
    return rates


def _send(server: ServerProcess, variant: Variant, seconds: float) -> float:
    """Return answered requests per second."""
    settings = {
        "address": server.http,
        "protocol": "http",
        "path": "",
        "connections": max(1, CONNECTIONS // variant.rows),
        "rate": None,
        "duration_s": seconds,
        "timeout_s": 60.0,
    }
    texts = [
        request(variant.model, "binary", inputs).http_request(server.http)
        for inputs in variant.batches
    ]
    report = json.loads(_native.run_load(json.dumps(settings), texts))
    if report["errors"]:
        raise SystemExit(f"error: {variant.name}: {report['errors_by_kind']}")
    return float(report["rate"])


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
    client = InferenceServerClient(server.http, concurrency=CONNECTIONS)

    def ask(inputs: Inputs) -> list[Array]:
        tensors = []
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
    refused = [row["message"] for row in server.events("model_note") if "'auto'" in row["message"]]
    return [
        Goal(
            "ocr: the same text as from lines alone",
            f"{same} of {len(lines)} ({right} as written)",
            same == len(lines),
        ),
        Goal(
            "ocr: the load check refuses to pad unless the user accepts",
            refused[0].partition("batch: ")[2] if refused else "no word",
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
    buckets = part.rates["buckets"]
    rows = [
        [
            name,
            Spread.of(rates).text(1),
            Spread.of([one / other for one, other in zip(buckets, rates, strict=True)]).text(2),
        ]
        for name, rates in part.rates.items()
    ]
    return Table(part.name, ("variant", "sequences/s", "buckets / this"), rows)


def _ratio(rates: Mapping[str, Sequence[float]], name: str, least: float, text: str) -> Goal:
    pairs = zip(rates["buckets"], rates[name], strict=True)
    spread = Spread.of([one / other for one, other in pairs])
    return Goal(text, spread.text(2), spread.median >= least)


def _encoder_goals(rates: Mapping[str, Sequence[float]]) -> list[Goal]:
    text = "encoder: at least 1.8x the throughput of padding to the"
    return [
        *(_ratio(rates, f"client {n}", 1.8, f"{text} longest of {n}") for n in ROWS),
        _ratio(rates, "client max", 1.8, f"{text} maximum of {LONGEST}"),
    ]


def _ocr_goals(rates: Mapping[str, Sequence[float]]) -> list[Goal]:
    widest = f"ocr: at least 1.5x the throughput of padding to the widest of {WIDEST}"
    return [
        _ratio(rates, f"client {WIDEST}", 1.5, widest),
        _ratio(rates, "alone", 1.0, "ocr: not below serving each line alone"),
    ]


PARTS: Mapping[str, Callable[[int, float], Part]] = {"encoder": run_encoder, "ocr": run_ocr}
GOALS: Mapping[str, Callable[[Mapping[str, Sequence[float]]], list[Goal]]] = {
    "encoder": _encoder_goals,
    "ocr": _ocr_goals,
}


if __name__ == "__main__":
    main()
