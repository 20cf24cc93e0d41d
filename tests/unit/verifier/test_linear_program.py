"""Linear programs: proposals that close leaves, and wrong duals that prove nothing."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lrai.testing.models import dense
from lrai.verifier import relu_split
from lrai.verifier.certificate import Certificate, Tree
from lrai.verifier.checker.check import check
from lrai.verifier.linear_program import LinearProgram, is_supported
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.operators.relu import Relu
from lrai.verifier.operators.smooth import Sigmoid
from lrai.verifier.program_bounds import ProgramBounds
from lrai.verifier.relu_bounds import ReluBox
from lrai.verifier.relu_split import ReluSplit
from lrai.verifier.slope_ascent import Start, Steps, ascend
from lrai.verifier.vnnlib import read_vnnlib

INPUTS = 20
"""More than a search by input splits takes."""


class Bench:
    """A network in a file, and questions whether its output falls to a limit."""

    def __init__(self, folder, layers):
        self.folder, self.path = folder, dense(folder / "model.onnx", layers, 1)
        self.network = read_onnx(self.path)

    def ask(self, limit):
        """A file and a property: whether Y_0 falls to a limit for inputs between -1 and 1."""
        lines = []
        for i in range(INPUTS):
            lines += [f"(declare-const X_{i} Real)(assert (<= X_{i} 1))(assert (>= X_{i} -1))"]
        path = self.folder / "property.vnnlib"
        path.write_text("\n".join([*lines, f"(declare-const Y_0 Real)(assert (<= Y_0 {limit}))"]))
        return path, read_vnnlib(path, INPUTS, 1)

    def box(self, subject):
        box = ReluBox.root(self.network, subject.cases, "float32")
        box.optimise()
        return box

    def check(self, subject, path, tree):
        file = self.folder / "certificate"
        inputs = tuple(range(INPUTS))
        Certificate(self.network.digests, subject, "float32", (tree,), inputs).write(file)
        return check(file, [self.path], path)


@pytest.fixture(params=range(3))
def bench(request, tmp_path):
    random, sizes = np.random.default_rng(request.param), (INPUTS, 10, 8, 1)
    layers = [
        (random.normal(size=shape) / np.sqrt(shape[0]), random.normal(size=shape[1]) / 4)
        for shape in pairwise(sizes)
    ]
    return Bench(tmp_path, layers)


def exclusive(folder):
    """No two of a + b >= 1, a - b >= 0.5 and a <= 0.1 exclude each other, but all three do.

    Y is 4 less what the first exceeds; a and b are sums of ten inputs, so that it takes more than
    a few halves of the inputs to see that.
    """
    half, weights, bias = INPUTS // 2, np.zeros((INPUTS, 3)), np.array([-1.0, -0.5, 0.1])
    weights[:half], weights[half:] = np.array([[1, 1, -1], [1, -1, 0]])[:, None] / half * 2
    behind = np.array([[-1.0], [0.0], [0.0]])
    return Bench(folder, [(weights, bias), (behind, np.array([4.0]))])


def regions(box, random):
    """Regions that are not empty, as a point of each shows: some neurons have its signs there."""
    for count in (0, 2, 5):
        values = box.network.values(random.uniform(-1, 1, (1, INPUTS)))
        found = [np.where(values[source][0] >= 0, 1, -1) for source in box.sources.values()]
        signs = np.concatenate(found).astype(np.int8)
        signs[random.permutation(box.hidden)[count:]] = 0
        yield signs, box.region(signs)


def ascent(box, region, signs, steps):
    """What slopes and multipliers reach that begin at the default."""
    levels, split = box.default_levels(region)[None], {}
    for relu, part in box.slices.items():
        if signs[part].any():
            split[relu] = signs[part].astype(np.float64)
    start = Start(
        {relu: levels[:, part] for relu, part in box.slices.items()},
        {relu: np.zeros((1, len(sign)), np.float32) for relu, sign in split.items()},
        split,
    )
    return ascend(box.bounds, box.bounds.relax(region.boxes), np.ones((1, 1)), start, steps)


def proposed(box, region, signs):
    """What the program's dual proves, computed again."""
    bounds = ProgramBounds(box)
    bounds._program.describe(region.boxes, signs)
    return bounds._bound(region, signs, np.ones(1), bounds._program.propose(np.ones(1)))


def test_no_ascent_passes_the_program(bench):
    _, subject = bench.ask(100)  # all bounds are negative, so that nothing ends early
    box, random, gains = bench.box(subject), np.random.default_rng(0), []
    for signs, region in regions(box, random):
        bound = proposed(box, region, signs)
        long = ascent(box, region, signs, Steps(100, 0.1, 0.1, 0.98))
        assert bound >= long.bound[0] - 0.01
        gains.append(bound - ascent(box, region, signs, Steps(1)).bound[0])
    assert max(gains) > 0.01


def test_bounds_of_programs_hold_at_points(bench):
    _, subject = bench.ask(0)
    box, random = bench.box(subject), np.random.default_rng(1)
    values = box.network.values(random.uniform(-1, 1, (5000, INPUTS)))
    positive = np.concatenate([values[source] >= 0 for source in box.sources.values()], axis=1)
    for signs, region in regions(box, random):
        inside = np.all((signs == 0) | (positive == (signs > 0)), axis=1)
        assert inside.any()
        assert values[-1][inside].min() >= proposed(box, region, signs) > -np.inf


def test_a_program_closes_what_default_slopes_do_not(bench, monkeypatch):
    _, subject = bench.ask(100)
    box = bench.box(subject)
    signs = np.zeros(box.hidden, np.int8)
    region = box.region(signs)
    default, best = ascent(box, region, signs, Steps(1)).bound[0], proposed(box, region, signs)
    assert best > default + 0.01
    path, subject = bench.ask(100 + (default + best) / 2)
    monkeypatch.setattr(relu_split, "_QUICK", Steps(1))
    boxes = []
    for is_used in (True, False):
        if not is_used:
            monkeypatch.setattr(ProgramBounds, "of", lambda _: None)
        split = ReluSplit(bench.network, subject.cases, "float32")
        while split.open:
            assert split.step(lambda *_: None) is None
        assert not split.stuck
        result = bench.check(subject, path, split.tree)
        assert result.accepted, result.reason
        boxes.append(split.boxes)
    assert boxes[0] == 1 < boxes[1]


@pytest.mark.parametrize(
    ("spoil", "is_accepted"),
    [
        (lambda betas: betas, True),
        (lambda betas: betas * [0, 0, 1], False),
        (lambda betas: betas * [1, 0, 0], False),
    ],
    ids=["as proposed", "of the last neuron", "of the first neuron"],
)
def test_a_ray_shows_that_a_region_is_empty(tmp_path, spoil, is_accepted):
    bench = exclusive(tmp_path)
    path, subject = bench.ask(0)
    box = bench.box(subject)
    signs = np.ones(3, np.int8)
    program = LinearProgram(box)
    program.describe(box.region(signs).boxes, signs)
    proposal = program.propose(np.ones(1))
    assert proposal.is_empty
    (slopes,), (betas,) = proposal.slopes.values(), proposal.betas.values()
    tree, node = Tree(subject.cases, 3), 0
    for neuron in range(3):
        below, node = tree.split(node, -2 - neuron)
        tree.close(below)
    tree.close(node, np.zeros((1, 1)), slopes[None], spoil(betas[None].astype(np.float64)))
    assert bench.check(subject, path, tree).accepted is is_accepted


def test_an_empty_region_has_weights_of_zero(tmp_path):
    bench = exclusive(tmp_path)
    _, subject = bench.ask(100)
    box = bench.box(subject)
    bounds = ProgramBounds(box)
    for sign, is_empty in ((1, True), (0, False)):
        signs = np.array([1, 1, sign], np.int8)
        region = box.region(signs)
        found = ascent(box, region, signs, Steps(1))
        weights = bounds.prove(region, signs, np.ones((1, 1)), found)
        assert weights.any() != is_empty
        assert (found.bound[0] > 0) == is_empty


def test_wrong_duals_prove_nothing(bench, monkeypatch):
    _, subject = bench.ask(0)
    box, random = bench.box(subject), np.random.default_rng(2)
    bounds, propose = ProgramBounds(box), LinearProgram.propose

    def lie(self, weights):
        return replace(propose(self, weights), is_empty=True)

    monkeypatch.setattr(LinearProgram, "propose", lie)
    for signs, region in regions(box, random):
        found = ascent(box, region, signs, Steps(1))
        before = found.bound[0] - 100
        found.bound[0] = before
        assert bounds.prove(region, signs, np.ones((1, 1)), found).all()
        assert found.bound[0] == before


def test_it_is_tried_everywhere_only_while_it_saves_time(bench, monkeypatch):
    _, subject = bench.ask(100)
    box = bench.box(subject)
    signs = np.zeros(box.hidden, np.int8)
    region, bounds = box.region(signs), ProgramBounds(box)
    bounds.prove(region, signs, np.ones((1, 1)), ascent(box, region, signs, Steps(1)))
    assert [depth for depth in range(9) if bounds.pays(depth, 1e6)] == [0, 4, 8]
    monkeypatch.setattr(ProgramBounds, "_bound", lambda *_: 1.0)
    bounds.prove(region, signs, np.ones((1, 1)), ascent(box, region, signs, Steps(1)))
    assert all(bounds.pays(depth, 1e6) for depth in range(9))
    assert not bounds.pays(1, 0.0)


def test_other_networks_go_without(tmp_path):
    bench = exclusive(tmp_path)
    _, subject = bench.ask(0)
    box = bench.box(subject)
    assert is_supported(box.bounds.graph)
    nodes = [
        replace(node, operator=Sigmoid()) if isinstance(node.operator, Relu) else node
        for node in box.network.nodes
    ]
    other = ReluBox(replace(box.network, nodes=tuple(nodes)), box.box, "float32")
    assert ProgramBounds.of(other) is None
    with pytest.raises(ValueError, match="Relu"):
        LinearProgram(other)
