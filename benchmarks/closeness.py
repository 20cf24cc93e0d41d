"""How far are quantised models from their originals? Proofs, samples and radii, with their times.

`OPENBLAS_NUM_THREADS=1 LRAI_DATA=DIR python -m benchmarks.closeness [PART...]`, parts `acasxu`,
`models`, `cases`, `radius`; without the data (`DIR/vnncomp/acasxu`) the first one is left out.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from sklearn import datasets
from sklearn.neural_network import MLPClassifier

from benchmarks.report import ROOT, Goal, Section, Table, environment, write
from lrai.verifier.closeness import Closeness, ClosenessSettings, compare
from lrai.verifier.deployed import DeployedModel
from lrai.verifier.input_box import InputBox, ball, read_box
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.radius import RadiusSettings, certified_radii, draw
from lrai.verifier.statistical import NoisyRows, Plan, Uniform, certify

RESULTS = ROOT / "benchmarks" / "results"
# The networks and properties of the survey that set the goal; chosen before anything was measured.
ACASXU = (("4_5", 4), ("1_1", 3), ("3_3", 3))
DATA = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}
SHAPES = ((8,), (16,), (32,), (16, 16), (32, 16))
RADIUS, SECONDS, EPSILON = 0.01, 20.0, 0.01
POINTS, CASES, IMAGES = 1_000_000, 10_000_000, 1_000


def main(parts: list[str]) -> None:
    """Run the parts and write `closeness.md` and `closeness.json`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    command = "OPENBLAS_NUM_THREADS=1 python -m benchmarks.closeness " + " ".join(parts)
    where = dataclasses.replace(environment("none", {}, {}), command=command.strip())
    done: dict[str, tuple[Table, list[Goal], object]] = {}
    known: dict[str, Callable[[Path], tuple[Table, list[Goal], object]]] = {
        "acasxu": acasxu,
        "models": models,
        "cases": cases,
        "radius": radius,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in parts or known:
            if name == "acasxu" and "LRAI_DATA" not in os.environ:
                print("acasxu is left out: LRAI_DATA is not set")
                continue
            done[name] = known[name](Path(folder))
    section = Section(
        name="closeness",
        title="Quantised models against their originals",
        how=(
            "Every upper bound is proved and covers float32 rounding in any order of summation; "
            "every lower bound is what onnxruntime and the reference evaluator both show at a "
            "witness. Times include reading the models."
        ),
        tables=[table for table, _, _ in done.values()],
        goals=[goal for _, goals, _ in done.values() for goal in goals],
        data={name: data for name, (_, _, data) in done.items()},
    )
    write(RESULTS, section, where)


def acasxu(folder: Path) -> tuple[Table, list[Goal], object]:
    """Weight-only INT8 on the boxes of ACAS Xu properties, and samples against the bound."""
    source = Path(os.environ["LRAI_DATA"]) / "vnncomp" / "acasxu"
    rows, data = [], []
    for network, number in ACASXU:
        original = source / f"ACASXU_run2a_{network}_batch_2000.onnx"
        served = with_int8_weights(original, folder / f"{network}.onnx")
        box = read_box(source / f"prop_{number}.vnnlib", 5, 5)
        settings = ClosenessSettings(is_absolute=True, timeout_s=60)
        found = timed(original, served, box, settings)
        seen = sampled(original, served, box)
        ratio = found.upper / found.lower
        print(network, number, found.answer, found.lower, found.upper, ratio, seen, flush=True)
        data.append({"network": network, "property": number, "sampled": seen} | facts(found))
        cells = [f"{network}, property {number}", found.answer, f"{found.lower:.5f}"]
        cells += [f"{found.upper:.5f}", f"{ratio:.3f}", f"{seen:.5f}", f"{found.seconds:.1f}"]
        rows.append(cells)
    columns = ["network and box", "0.01 absolute", "L", "U", "U / L"]
    columns += [f"largest of {POINTS:,} samples", "seconds"]
    goals = [
        Goal(
            "weight-only INT8 on ACAS Xu boxes: U / L <= 1.5 within 60 s",
            ", ".join(
                f"{row['upper'] / row['lower']:.2f} in {row['seconds']:.1f} s" for row in data
            ),
            all(row["upper"] <= 1.5 * row["lower"] and row["seconds"] <= 60 for row in data),
        ),
        Goal(
            "no sampled or attacked difference exceeds U",
            f"{len(data)} boxes, {POINTS:,} points each",
            all(max(row["sampled"], row["lower"]) <= row["upper"] for row in data),
        ),
    ]
    return Table("ACAS Xu, weight-only INT8 per channel", columns, rows), goals, data


def models(folder: Path) -> tuple[Table, list[Goal], object]:
    """Twenty small models, quantised by onnxruntime's quantizer in two ways."""
    rows, data = [], []
    for name, load in DATA.items():
        x, labels = load(return_X_y=True)
        low, high = x.min(axis=0), x.max(axis=0)
        x = ((x - low) / np.where(high > low, high - low, 1)).astype(np.float32)
        box = ball(x[0].astype(np.float64), RADIUS, 0.0, 1.0)
        for shape in SHAPES:
            model = MLPClassifier(shape, max_iter=400, random_state=0).fit(x, labels)
            original = export(model, folder / f"{name}{len(rows)}.onnx")
            cells = [f"{name} {'-'.join(map(str, shape))}"]
            for kind in ("weights", "w8a16"):
                served = quantized(original, kind, x)
                found = timed(original, served, box, ClosenessSettings(EPSILON, timeout_s=SECONDS))
                seen = sampled(original, served, box, POINTS // 10)
                data.append({"model": cells[0], "kind": kind, "sampled": seen} | facts(found))
                interval = found.lower / found.scale_upper, found.upper / found.scale_lower
                cells += [found.answer, f"[{interval[0]:.5f}, {interval[1]:.5f}]"]
                cells += [f"{found.seconds:.1f}"]
            print(cells, flush=True)
            rows.append(cells)
    columns = ["data and layers"]
    for kind in ("weight-only INT8", "W8A16"):
        columns += [kind, "relative difference", "seconds"]
    decided = sum(row["answer"] != "OPEN" for row in data)
    goals = [
        Goal(
            "a verdict at 0.01 on 20 small trained models, weight-only INT8 and W8A16",
            f"{decided} of {len(data)} decided",
            decided == len(data),
        ),
        Goal(
            "no sampled difference of theirs exceeds U",
            f"{POINTS // 10:,} points each",
            all(row["sampled"] <= row["upper"] for row in data),
        ),
    ]
    title = f"Small models, L-infinity radius {RADIUS} around the first row of features in [0, 1]"
    return Table(title, columns, rows), goals, data


def cases(folder: Path) -> tuple[Table, list[Goal], object]:
    """A statistical certificate of ten million cases."""
    x, labels = datasets.load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    original = export(MLPClassifier((32, 16), random_state=0).fit(x, labels), folder / "d.onnx")
    served = quantized(original, "w8a16", x)
    scale = float(np.abs(DeployedModel(original).evaluate(x)).max())
    plan = Plan(original, served, NoisyRows(x, RADIUS), EPSILON, CASES, scale)
    start = time.monotonic()
    found = certify(plan, workers=2)
    seconds = time.monotonic() - start
    row = [f"{found.n:,}", str(found.k), f"{found.rate:.3g}", f"{found.largest:.5f}"]
    print(row, seconds, flush=True)
    goal = Goal(
        "10^7 cases of a small model in at most 5 minutes",
        f"{seconds:.0f} s, {found.k} violations, rate <= {found.rate:.3g} at 99.9 %; "
        f"a share of at most {found.largest_share:.3g} exceeds the largest difference seen",
        seconds <= 300,
    )
    columns = ["cases", "violations", "rate at most (99.9 %)", "largest relative difference"]
    columns += ["seconds"]
    title = "Statistical certificate: digits 64-32-16-10, W8A16, rows with uniform noise of 0.01"
    data = {"k": found.k, "rate": found.rate, "largest": found.largest, "seconds": seconds}
    return Table(title, columns, [[*row, f"{seconds:.0f}"]]), [goal], data


def radius(folder: Path) -> tuple[Table, list[Goal], object]:
    """Certified radii of a trained digits model."""
    x, labels = datasets.load_digits(return_X_y=True)
    x = x / 16
    model = MLPClassifier((32, 16), random_state=0).fit(x[IMAGES:], labels[IMAGES:])
    network = read_onnx(export(model, folder / "digits.onnx"))
    settings = RadiusSettings(least_value=0.0, greatest_value=1.0)
    start = time.monotonic()
    found = certified_radii(network, x[:IMAGES], labels[:IMAGES], settings)
    seconds = time.monotonic() - start
    (RESULTS / "radius.svg").write_text(draw(found), encoding="utf-8")
    shares = {r: found.share(r) for r in (0.0, 1 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255)}
    print(shares, seconds, flush=True)
    goal = Goal(
        "certified radius of 1,000 digits in at most 60 s", f"{seconds:.1f} s", seconds <= 60
    )
    row = [f"{share:.1%}" for share in shares.values()]
    columns = [f"accuracy at {r * 255:.0f}/255" for r in shares]
    title = "Digits 64-32-16-10, certified accuracy by radius (radius.svg)"
    return Table(title, columns, [row]), [goal], {"seconds": seconds, "shares": list(row)}


def timed(original: Path, served: Path, box: InputBox, settings: ClosenessSettings) -> Closeness:
    """A comparison whose seconds are those of the clock around it."""
    start = time.monotonic()
    found = compare(original, served, box, settings)
    return dataclasses.replace(found, seconds=time.monotonic() - start)


def facts(found: Closeness) -> dict[str, object]:
    """What the JSON file keeps of a comparison."""
    names = ("answer", "lower", "upper", "scale_lower", "scale_upper", "boxes", "seconds", "reason")
    return {name: getattr(found, name) for name in names}


def sampled(original: Path, served: Path, box: InputBox, points: int = POINTS) -> float:
    """The largest difference in onnxruntime at uniform points."""
    distribution = Uniform(box.lower, box.upper)
    random, largest = np.random.default_rng(7), 0.0
    f, q = DeployedModel(original), DeployedModel(served)
    for start in range(0, points, 50_000):
        x = distribution.draw(random, min(50_000, points - start))
        difference = f.evaluate(x).astype(np.float64) - q.evaluate(x)
        largest = max(largest, float(np.abs(difference).max()))
    return largest


def with_int8_weights(source: Path, target: Path) -> Path:
    """Weights of every MatMul as symmetric INT8 per output channel, behind DequantizeLinear."""
    model = onnx.load(source)
    used = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    nodes = []
    for tensor in [t for t in model.graph.initializer if t.name in used]:
        weights = numpy_helper.to_array(tensor)
        scale = (np.abs(weights).max(axis=0) / 127).astype(np.float32)
        levels = np.clip(np.rint(weights / scale), -127, 127).astype(np.int8)
        name = tensor.name
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(numpy_helper.from_array(levels, f"{name}/levels"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
        inputs = [f"{name}/levels", f"{name}/scale"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=1))
    kept = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    inputs = [value for value in model.graph.input if value.name not in used]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 21))
    model.ir_version = 10
    onnx.save(model, target)
    return target


def export(model: MLPClassifier, path: Path) -> Path:
    """The scores (before the softmax) of a scikit-learn network as Gemm and Relu."""
    nodes, tensors, value = [], [], "x"
    for number, pair in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        names = [f"w{number}", f"b{number}"]
        for array, name in zip(pair, names, strict=True):
            tensors.append(numpy_helper.from_array(array.astype(np.float32), name))
        last = number == len(model.coefs_) - 1
        output = "y" if last else f"z{number}"
        nodes.append(helper.make_node("Gemm", [value, *names], [output], f"gemm{number}"))
        if not last:
            value = f"a{number}"
            nodes.append(helper.make_node("Relu", [output], [value], f"relu{number}"))
    sizes = model.coefs_[0].shape[0], model.coefs_[-1].shape[1]
    info = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])
        for name, size in zip("xy", sizes, strict=True)
    ]
    graph = helper.make_graph(nodes, "mlp", info[:1], info[1:], tensors)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def quantized(source: Path, kind: str, x: np.ndarray) -> Path:
    """INT8 weights per channel and 16-bit activations by onnxruntime's quantizer.

    For `weights` its pairs of QuantizeLinear and DequantizeLinear on activations are taken out.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter([{"x": x}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._rows, None)

    target = source.with_suffix(f".{kind}.onnx")
    quantize_static(
        source,
        target,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt8,
        extra_options={"QDQKeepRemovableActivations": kind == "weights"},
    )
    if kind == "weights":
        onnx.save(without_activation_pairs(onnx.load(target)), target)
    return target


def without_activation_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every DequantizeLinear of a QuantizeLinear replaced by what was quantised."""
    sources = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    renamed = {
        n.output[0]: sources[n.input[0]]
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in sources
    }
    kept = []
    for node in model.graph.node:
        if node.output[0] in sources or node.output[0] in renamed:
            continue
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        kept.append(node)
    # The output keeps its name: the node that made the quantised value takes it over.
    final = {renamed[v.name]: v.name for v in model.graph.output if v.name in renamed}
    for node in kept:
        for index, name in enumerate(node.output):
            node.output[index] = final.get(name, name)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    return model


if __name__ == "__main__":
    main(sys.argv[1:])
