"""Signs of Relus: proofs that the checker accepts, counterexamples that are real, sound boxes."""

from itertools import pairwise

import numpy as np
import pytest

from lrai.testing.models import dense
from lrai.verifier import relu_split
from lrai.verifier.branching import candidates
from lrai.verifier.certificate import Certificate
from lrai.verifier.checker.check import check
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.relu_bounds import ReluBox
from lrai.verifier.relu_split import ReluSplit
from lrai.verifier.replay import Part, Replay
from lrai.verifier.sign_proof import SignProofs
from lrai.verifier.slope_ascent import Start, Steps, ascend
from lrai.verifier.vnnlib import read_vnnlib

SIZES = (20, 12, 10, 3)
RADIUS = 0.12


class Bench:
    """A random network in a file, and questions about its first output."""

    def __init__(self, folder, seed, sizes=SIZES):
        random = np.random.default_rng(seed)
        layers = [
            (random.normal(size=shape) / np.sqrt(shape[0]), random.normal(size=shape[1]) / 4)
            for shape in pairwise(sizes)
        ]
        self.folder, self.path = folder, dense(folder / "model.onnx", layers, 1)
        self.network = read_onnx(self.path)
        self.centre = random.random(sizes[0])
        self.points = self.around(random.random((20_000, sizes[0])))
        self.least = self.network.evaluate(self.points)[:, 0].min()

    def around(self, weight):
        return self.centre + RADIUS * (2 * weight - 1)

    def ask(self, limit, radius=RADIUS):
        """Whether Y_0 falls to a limit."""
        lines = []
        for i, x in enumerate(self.centre):
            lines += [f"(declare-const X_{i} Real)"]
            lines += [f"(assert (<= X_{i} {x + radius}))(assert (>= X_{i} {x - radius}))"]
        lines += [f"(declare-const Y_{i} Real)" for i in range(self.network.output_size)]
        path = self.folder / "property.vnnlib"
        path.write_text("\n".join([*lines, f"(assert (<= Y_0 {limit}))"]))
        return path, read_vnnlib(path, self.network.input_size, self.network.output_size)

    def write(self, tree, subject, path):
        inputs = tuple(range(self.network.input_size))
        Certificate(self.network.digests, subject, "float32", (tree,), inputs).write(path)

    def search(self, subject):
        split = ReluSplit(self.network, subject.cases, "float32")
        replay = Replay([Part(self.path)])
        for _ in range(400):
            if not split.open:
                break
            witness = split.step(replay.confirm)
            if witness is not None:
                return split, witness
        return split, None


@pytest.fixture(params=range(3))
def bench(request, tmp_path):
    return Bench(tmp_path, request.param)


def truth(bench):
    """The least value of Y_0 that descent finds: an upper bound of the minimum."""
    from lrai.verifier.attack import Attack, AttackSettings, Objective

    _, subject = bench.ask(bench.least - 100)
    objective = Objective(bench.network, subject.cases)
    best = bench.least
    x = bench.points[np.argsort(bench.network.evaluate(bench.points)[:, 0])[:50]]
    for rate in np.geomspace(0.1, 1e-3, 200):
        _, gradient = objective.descend(x, np.zeros(len(x), np.intp))
        x = np.clip(x - rate * np.sign(gradient), subject.cases[0].lower, subject.cases[0].upper)
        best = min(best, bench.network.evaluate(x)[:, 0].min())
    assert Attack(bench.network, subject.cases, AttackSettings(starts=1, steps=1)).round() == []
    return best


def test_a_limit_below_the_minimum_is_proved_and_checked(bench):
    path, subject = bench.ask(truth(bench) - 0.02)
    split, witness = bench.search(subject)
    assert witness is None
    assert not split.open
    assert not split.stuck
    assert split.share == pytest.approx(1.0)
    file = bench.folder / "certificate"
    bench.write(split.tree, subject, file)
    result = check(file, [bench.path], path)
    assert result.accepted, result.reason


def test_slopes_that_are_adapted_at_every_split_are_checked(bench, monkeypatch):
    monkeypatch.setattr(relu_split, "_EVERY", 1)
    monkeypatch.setattr(relu_split, "_LEAST_BETTER", -np.inf)
    path, subject = bench.ask(truth(bench) - 0.02)
    split, _ = bench.search(subject)
    assert not split.open
    assert split.tree.tables
    file = bench.folder / "certificate"
    bench.write(split.tree, subject, file)
    result = check(file, [bench.path], path)
    assert result.accepted, result.reason


def test_a_limit_above_the_minimum_has_a_counterexample(bench):
    _, subject = bench.ask(truth(bench) + 0.01)
    _, witness = bench.search(subject)
    assert witness is not None
    assert subject.cases[0].contains(witness.x, witness.y)


def test_boxes_of_splits_contain_what_the_network_computes(bench):
    _, subject = bench.ask(bench.least)
    root = ReluBox.root(bench.network, subject.cases, "float32")
    box, kept = root.reduced(root.optimise(Steps(5)))
    assert 0 < len(kept) <= root.hidden
    region = box.region(np.zeros(box.hidden, np.int8))
    neuron = candidates(
        box,
        region,
        {relu: np.ones((1, box.slices[relu].stop - box.slices[relu].start)) for relu in box.relus},
        1,
    )[0]
    values = box.network.values(bench.points)
    relu = next(
        relu for relu in box.relus if box.slices[relu].start <= neuron < box.slices[relu].stop
    )
    side = values[box.sources[relu]][:, neuron - box.slices[relu].start]
    for sign in (-1, 1):
        signs = np.zeros(box.hidden, np.int8)
        signs[neuron] = sign
        found, inside = box.region(signs), side * sign >= 0
        assert found is not None
        for index, value in enumerate(values[:-1]):
            assert (value[inside] >= found.boxes[index].lower - 1e-9).all()
            assert (value[inside] <= found.boxes[index].upper + 1e-9).all()


def test_multipliers_of_splits_keep_bounds_below_the_values(bench):
    _, subject = bench.ask(bench.least)
    root = ReluBox.root(bench.network, subject.cases, "float32")
    box, _ = root.reduced(root.optimise(Steps(5)))
    region = box.region(np.zeros(box.hidden, np.int8))
    levels = box.default_levels(region)
    relu = box.relus[-1]
    neuron = int(
        np.argmax(
            np.minimum(
                -region.boxes[box.sources[relu]].lower[0], region.boxes[box.sources[relu]].upper[0]
            )
        )
    )
    signs = np.zeros(box.hidden, np.int8)
    signs[box.slices[relu].start + neuron] = 1
    start = Start(
        {one: levels[None, part] for one, part in box.slices.items()},
        {relu: np.zeros((1, box.slices[relu].stop - box.slices[relu].start), np.float32)},
        {relu: signs[box.slices[relu]].astype(np.float64)},
    )
    split = box.region(signs)
    regions = box.bounds.relax(split.boxes)
    found = ascend(box.bounds, regions, np.eye(1), start, Steps(20))
    first = ascend(box.bounds, regions, np.eye(1), start, Steps(1))
    values = box.network.values(bench.points)
    inside = values[box.sources[relu]][:, neuron] >= 0
    assert first.bound[0] <= found.bound[0] <= values[-1][inside].min()


def test_signs_that_follow_from_splits_are_those_of_all_values_there(tmp_path):
    bench = Bench(tmp_path, 0, (4, 24, 10, 3))
    _, subject = bench.ask(bench.least, 6 * RADIUS)
    root = ReluBox.root(bench.network, subject.cases, "float32")
    box, _ = root.reduced(root.optimise(Steps(5)))
    first, second = box.relus
    values = box.network.values(bench.centre + 6 * (bench.points - bench.centre))
    before, behind = (values[box.sources[relu]] for relu in box.relus)
    proofs, found = SignProofs(box), 0
    for point in range(20):
        signs = np.zeros(box.hidden, np.int8)
        signs[box.slices[first]] = np.where(before[point] > 0, 1, -1)
        inside = (before * signs[box.slices[first]] >= 0).all(axis=1)
        boxes = box.region(signs).boxes
        for proof in proofs.find(second, boxes, signs, box.levels):
            side = behind[inside, proof.neuron - box.slices[second].start]
            assert (side * proof.sign > 0).all()
            assert (proof.betas >= 0).all()
            found += 1
    assert found > 5
