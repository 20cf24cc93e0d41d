"""Bounds, the optimiser and branch and bound, on small networks against brute force."""

import itertools

import numpy as np
import pytest

from lrai.verifier.backward import Choice, Trace
from lrai.verifier.bounds import Bounds, conditions
from lrai.verifier.frontier import Frontier
from lrai.verifier.input_split import InputSplit
from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Box
from lrai.verifier.operators.relu import Relu
from lrai.verifier.operators.smooth import Tanh
from lrai.verifier.optimise import default_slopes, improve, replay
from lrai.verifier.property import Case, Property
from lrai.verifier.search import SearchSettings, verify


def dense(sizes, seed=0, kind=Relu, scale=1.4) -> Network:
    random = np.random.default_rng(seed)
    nodes = [Node("x", None, (), (sizes[0],))]
    for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
        weights = random.normal(0, scale / np.sqrt(before), (before, after)).astype(np.float32)
        bias = random.normal(0, 0.3, after).astype(np.float32)
        operator = Affine((weights.astype(np.float64),), bias.astype(np.float64))
        nodes.append(Node(f"affine{layer}", operator, (len(nodes) - 1,), (after,)))
        if layer < len(sizes) - 2:
            nodes.append(Node(f"act{layer}", kind(), (len(nodes) - 1,), (after,)))
    return Network(tuple(nodes), (0,), (len(nodes) - 1,), ("0" * 64,))


def residual(seed=0) -> Network:
    """x -> affine -> relu -> affine, added to x, -> relu -> affine; x has two consumers."""
    random = np.random.default_rng(seed)
    w = [random.normal(0, 0.7, (4, 4)) for _ in range(4)]
    nodes = (
        Node("x", None, (), (4,)),
        Node("a", Affine((w[0],), np.full(4, 0.1)), (0,), (4,)),
        Node("r", Relu(), (1,), (4,)),
        Node("sum", Affine((w[1], w[2]), np.zeros(4)), (2, 0), (4,)),
        Node("r2", Relu(), (3,), (4,)),
        Node("out", Affine((w[3], np.eye(4)), np.zeros(4)), (4, 2), (4,)),
    )
    return Network(nodes, (0,), (5,), ("0" * 64,))


def case(lower, upper, rows, offset, **more) -> Case:
    rows, offset = np.atleast_2d(np.asarray(rows, float)), np.atleast_1d(np.asarray(offset, float))
    return Case(np.asarray(lower, float), np.asarray(upper, float), rows, offset, **more)


def prop(*cases) -> Property:
    return Property(tuple(cases), "0" * 64, "")


def smallest(network, box, row, seed=0, count=4000) -> float:
    random = np.random.default_rng(seed)
    corners = np.array(list(itertools.product(*zip(box.lower[0], box.upper[0], strict=True))))
    inside = random.uniform(box.lower, box.upper, (count, box.lower.shape[1]))
    return float((network.evaluate(np.concatenate([corners, inside])) @ row).min())


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "make", [lambda s: dense([3, 9, 8, 2], s), residual, lambda s: dense([4, 6, 2], s, Tanh)]
)
def test_every_node_box_and_row_bound_contains_all_points(make, seed, arithmetic):
    network, random = make(seed), np.random.default_rng(seed)
    size = network.input_size
    centre, radius = random.normal(0, 1, (5, size)), random.uniform(0, 0.5, (5, size))
    bounds = Bounds(network, arithmetic)
    regions = bounds.regions(Box(centre - radius, centre + radius))
    rows = random.normal(0, 1, (5, 3, network.output_size))
    lower = bounds.lower(rows, regions)
    for region in range(5):
        x = centre[region] + radius[region] * random.uniform(-1, 1, (3000, size))
        values = network.values(x)
        for value, box in zip(values, regions.boxes, strict=True):
            assert (value >= box.lower[region] - 1e-12).all()
            assert (value <= box.upper[region] + 1e-12).all()
        assert ((network.evaluate(x) @ rows[region].T).min(axis=0) >= lower[region]).all()


def test_rows_of_regions_in_every_arrangement_agree():
    network, random = dense([3, 9, 8, 2]), np.random.default_rng(1)
    centre = random.normal(0, 1, (4, 3))
    bounds = Bounds(network)
    regions = bounds.regions(Box(centre - 0.2, centre + 0.2))
    rows = random.normal(0, 1, (4, 5, 2))
    stacked = bounds.lower(rows, regions)
    index = np.repeat(np.arange(4), 5)
    np.testing.assert_allclose(bounds.lower(rows.reshape(20, 2), regions, index), stacked.ravel())
    one = regions.take(np.array([2]))
    np.testing.assert_allclose(bounds.lower(rows[2], one), stacked[2])
    taken = regions.take(index)
    np.testing.assert_allclose(bounds.lower(rows.reshape(20, 2), taken), stacked.ravel())


def test_a_stable_network_is_bounded_exactly_but_for_the_error_term():
    network = dense([3, 9, 8, 2])
    x = np.array([[0.3, -0.2, 0.5]])
    box = Box(x - 1e-9, x + 1e-9)
    exact = network.evaluate(x)[0, 0]
    row = np.array([[1.0, 0.0]])
    gaps = []
    for arithmetic in ("real", "float32"):
        bounds = Bounds(network, arithmetic)
        gaps.append(exact - bounds.lower(row, bounds.regions(box))[0])
    assert 0 < gaps[0] < 1e-7
    assert gaps[0] + 1e-8 < gaps[1] < 1e-4  # float32 costs more than float64, but not much


def test_float32_bounds_cover_any_order_of_summation():
    # 1e8 + 1 - 1e8 is 0 or 1 in float32, whatever the exact value: no proof may depend on it.
    weights = np.array([[1e8, 1.0, -1e8]]).T
    nodes = (Node("x", None, (), (3,)), Node("y", Affine((weights,), np.zeros(1)), (0,), (1,)))
    network = Network(nodes, (0,), (1,), ("0" * 64,))
    box = Box(np.ones((1, 3)), np.ones((1, 3)))
    lower = {
        kind: Bounds(network, kind).lower(np.ones((1, 1)), Bounds(network, kind).regions(box))[0]
        for kind in ("real", "float32")
    }
    assert lower["real"] == pytest.approx(1, abs=1e-5)
    assert lower["float32"] < 0


def test_values_that_overflow_prove_nothing():
    network = dense([2, 4, 1], scale=1e30)
    bounds = Bounds(network)
    regions = bounds.regions(Box(np.full((1, 2), -1e30), np.full((1, 2), 1e30)))
    with np.errstate(all="ignore"):
        assert not bounds.lower(np.ones((1, 1)), regions)[0] > -np.inf


@pytest.mark.parametrize("seed", range(4))
def test_every_choice_of_slopes_and_multipliers_is_sound(seed):
    network, random = dense([3, 7, 7, 2], seed), np.random.default_rng(seed)
    centre = random.normal(0, 1, (1, 3))
    box = Box(centre - 0.5, centre + 0.5)
    bounds = Bounds(network)
    regions = bounds.regions(box).take(np.zeros(6, np.intp))
    rows = random.normal(0, 1, (6, 2))
    slopes = {index: random.uniform(0, 1, (6, 7)) for index in (2, 4)}
    found = bounds.lower(rows, regions, None, Choice(slopes))
    for row, lower in zip(rows, found, strict=True):
        assert smallest(network, box, row) >= lower
    # A split that says that the first neuron is >= 0: betas lower bound what is left of the box.
    betas = {1: np.zeros((6, 7))}
    betas[1][:, 0] = -random.uniform(0, 2, 6)
    found = bounds.lower(rows, regions, None, Choice(slopes, betas))
    x = random.uniform(box.lower, box.upper, (4000, 3))
    values = network.values(x)
    left = values[-1][values[1][:, 0] >= 0]
    if len(left):
        assert ((left @ rows.T).min(axis=0) >= found).all()


def test_the_replay_is_the_derivative_of_the_bound():
    network = dense([3, 8, 8, 3])
    bounds = Bounds(network, "real")
    regions = bounds.regions(Box(np.full((1, 3), -0.5), np.full((1, 3), 0.6)))
    slopes = {i: np.full((1, 8), 0.4) for i in (2, 4)}
    row, trace = np.array([[0.3, -0.4, 0.3]]), Trace()
    choice = Choice(slopes)
    before = bounds.lower(row, regions, None, choice, trace)[0]
    values = replay(bounds, regions, trace)
    for output in range(3):
        moved = row.copy()
        moved[0, output] += 1e-6
        slope = (bounds.lower(moved, regions, None, choice)[0] - before) / 1e-6
        assert slope == pytest.approx(values[-1][0, output], rel=1e-3, abs=1e-5)


def test_optimising_never_loses_and_mostly_gains():
    network = dense([3, 12, 12, 3], 3)
    bounds = Bounds(network)
    regions = bounds.regions(Box(np.full((8, 3), -0.5), np.full((8, 3), 0.5)))
    weights = np.full((8, 3), 1 / 3)
    found = improve(bounds, regions, weights, 12, sloped=True)
    choice = Choice({index: levels / 255 for index, levels in found.slopes.items()})
    again = bounds.lower(found.weights, regions, None, choice)
    np.testing.assert_array_equal(again, found.lower)  # what is quantised is what was bounded
    start = {index: levels / 255 for index, levels in default_slopes(bounds, regions).items()}
    assert (found.lower > bounds.lower(weights, regions, None, Choice(start))).all()


def test_a_condition_that_does_not_help_gets_no_weight():
    # y0 is above 1, y1 far below: any weight of y1 worth storing would lose the proof.
    weights = np.array([[0.1, 0.1]])
    nodes = (
        Node("x", None, (), (1,)),
        Node("y", Affine((weights,), np.array([1.0, -1000.0])), (0,), (2,)),
    )
    bounds = Bounds(Network(nodes, (0,), (1,), ("0" * 64,)))
    regions = bounds.regions(Box(np.zeros((1, 1)), np.ones((1, 1))))
    found = improve(bounds, regions, np.array([[0.75, 0.25]]), 12, sloped=False)
    assert found.lower[0] > 0
    assert found.weights[0, 1] == 0


def test_rows_that_are_proved_leave_the_optimiser_to_the_others():
    network = dense([3, 12, 12, 3], 3)
    bounds = Bounds(network)
    centre = np.random.default_rng(4).uniform(-1, 1, (16, 3))
    regions = bounds.regions(Box(centre - 0.1, centre + 0.1))
    weights = np.full((16, 3), 1 / 3)
    together = improve(bounds, regions, weights, 8, sloped=True)
    assert 0 < (together.lower > 0).sum() < 16
    for row in range(16):
        alone = improve(bounds, regions.take(np.array([row])), weights[:1], 8, sloped=True)
        if together.lower[row] > 0:
            assert alone.lower[0] > 0
        else:
            assert alone.lower[0] == pytest.approx(together.lower[row], abs=1e-9)


def test_a_frontier_gives_the_worst_then_the_newest():
    frontier = Frontier(np.zeros(1), np.ones(1), limit=5)
    frontier.pop(1)
    places = np.arange(4.0)[:, None]
    frontier.push(Box(places, places + 1), np.array([3.0, 1.0, 2.0, 0.0]), np.arange(4))
    box, nodes = frontier.pop(2)
    assert sorted(nodes) == [1, 3]
    assert sorted(box.lower[:, 0]) == [1.0, 3.0]
    assert (len(frontier), frontier.bound) == (2, 2.0)
    places = np.arange(2000.0)[:, None]
    frontier.push(Box(places, places), np.arange(2000.0), np.arange(2000))
    _, nodes = frontier.pop(3)
    assert list(nodes) == [1997, 1998, 1999]  # beyond the limit the newest come first
    rest = [frontier.pop(1)[1][0] for _ in range(len(frontier))]
    assert sorted(rest) == sorted([0, 2, *range(1997)])


@pytest.mark.parametrize("seed", range(12))
def test_verify_agrees_with_brute_force(seed):
    network, random = dense([2, 8, 8, 2], seed), np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 101)]), -1).reshape(-1, 2)
    values = network.evaluate(grid)
    row = random.normal(0, 1, 2)
    low, high = (values @ row).min(), (values @ row).max()
    box = [-1, -1], [1, 1]
    holds = verify(network, prop(case(*box, row, low - 0.1 * (high - low))), SearchSettings())
    assert (holds.answer, holds.witness) == ("unsat", None)
    assert holds.certificate is not None
    assert holds.bound > 0
    fails = verify(network, prop(case(*box, row, low + 0.01 * (high - low))), SearchSettings())
    assert fails.answer == "sat"
    assert fails.witness is not None
    assert fails.witness.x.astype(np.float32).astype(float) == pytest.approx(fails.witness.x, abs=0)
    assert network.evaluate(fails.witness.x[None])[0] @ row <= low + 0.01 * (high - low)


def test_a_conjunction_needs_weights():
    # Neither y <= -0.1 nor -y <= -0.1 can be excluded alone, both together can in one box.
    network = dense([2, 8, 1], 5)
    both = case([-1, -1], [1, 1], [[1.0], [-1.0]], [-0.1, -0.1])
    verdict = verify(network, prop(both), SearchSettings())
    assert (verdict.answer, verdict.boxes) == ("unsat", 1)


def test_cases_are_a_union_and_share_a_tree_where_they_share_a_box():
    network = dense([2, 8, 2], 1)
    low, high = [-1, -1], [1, 1]
    far = case(low, high, [1.0, 0.0], -50), case(low, high, [0.0, 1.0], -50)
    other = case([0, 0], [1, 1], [1.0, 0.0], -50)
    verdict = verify(network, prop(*far, other), SearchSettings())
    assert verdict.answer == "unsat"
    assert [len(tree.cases) for tree in verdict.certificate.trees] == [2, 1]
    unsafe = case(low, high, [1.0, 0.0], 50)
    assert verify(network, prop(*far, unsafe), SearchSettings()).answer == "sat"


def test_conditions_may_speak_about_inputs():
    network = dense([2, 6, 1], 2)
    bound = float(network.evaluate(np.random.default_rng(0).uniform(-1, 1, (5000, 2))).max()) + 3
    rows = {"input_rows": np.array([[5.0, 0.0]])}
    # -y + 5 x0 <= -(bound + 5) would need y >= bound + 5 + 5 x0 >= bound.
    unsafe = case([-1, -1], [1, 1], [-1.0], -(bound + 5.0), **rows)
    assert verify(network, prop(unsafe), SearchSettings()).answer == "unsat"
    assert conditions(network, [unsafe]).output_size == 1


def test_a_margin_below_float32_holds_over_the_reals_only():
    network = dense([2, 8, 1], 0)
    x = np.array([[0.25, -0.5]])
    y = float(network.evaluate(x)[0, 0])
    point = case(x[0], x[0], [1.0], y - 1e-9)
    assert verify(network, prop(point), SearchSettings(arithmetic="real")).answer == "unsat"
    verdict = verify(network, prop(point), SearchSettings())
    assert verdict.answer == "unknown"
    assert "holds over the real numbers" in verdict.reason


def test_time_and_memory_end_a_search_with_a_reason():
    network = dense([6, 30, 30, 30, 1], 1, scale=2.5)
    values = network.evaluate(np.random.default_rng(0).uniform(-1, 1, (20000, 6)))
    hard = prop(case([-1] * 6, [1] * 6, [1.0], float(values.min()) - 0.5 * float(np.ptp(values))))
    late = verify(network, hard, SearchSettings(timeout_s=0.0))
    assert (late.answer, late.certificate) == ("unknown", None)
    assert "time ran out" in late.reason
    full = verify(network, hard, SearchSettings(open_boxes=2))
    assert (full.answer, full.certificate) == ("unknown", None)
    assert "too many boxes" in full.reason


def test_an_open_box_of_inputs_is_refused():
    network = dense([2, 4, 1])
    verdict = verify(network, prop(case([-np.inf, 0], [1, 1], [1.0], -50)), SearchSettings())
    assert (verdict.answer, "finite" in verdict.reason) == ("unknown", True)


def test_what_the_checker_cannot_bound_has_no_certificate():
    network = dense([2, 5, 1], 0, Tanh)
    verdict = verify(network, prop(case([-1, -1], [1, 1], [1.0], -50)), SearchSettings())
    assert (verdict.answer, verdict.certificate) == ("unsat", None)
    assert "without a certificate" in verdict.reason


def test_a_search_reports_boxes_share_and_bound():
    network = dense([2, 8, 1], 0)
    search = InputSplit(network, [case([-1, -1], [1, 1], [1.0], -50)], "float32")
    assert search.open
    assert search.step(lambda _case, _x: None) is None
    assert (search.open, search.share, search.boxes) == (False, 1.0, 1)


@pytest.mark.parametrize(("kind", "certified"), [(Relu, True), (Tanh, False)])
def test_many_inputs_are_bounded_without_forms(kind, certified):
    network = dense([20, 8, 1], 4, kind)
    box = np.full(20, -0.1), np.full(20, 0.1)
    verdict = verify(network, prop(case(*box, [1.0], -20.0)), SearchSettings(timeout_s=20))
    assert (verdict.answer, verdict.certificate is not None) == ("unsat", certified)
    middle = float(network.evaluate(np.zeros((1, 20)))[0, 0])
    verdict = verify(network, prop(case(*box, [1.0], middle + 0.01)), SearchSettings(timeout_s=20))
    assert verdict.answer == "sat"


def test_many_inputs_without_relu_are_split():
    network = dense([20, 8, 1], 4, Tanh)
    x = np.random.default_rng(0).uniform(-1, 1, (4000, 20))
    limit = float(network.evaluate(x).min()) - 1.0
    open_property = prop(case(np.full(20, -1.0), np.full(20, 1.0), [1.0], limit))
    verdict = verify(network, open_property, SearchSettings(open_boxes=50))
    assert (verdict.answer, verdict.certificate) == ("unknown", None)
    assert "too many boxes" in verdict.reason
    assert verdict.boxes > 1


def test_a_case_without_conditions_is_bounded_and_refuted():
    network = dense([2, 4, 1])
    everywhere = case([-1, -1], [1, 1], np.zeros((0, 1)), np.zeros(0))
    assert verify(network, prop(everywhere), SearchSettings()).answer == "sat"
    search = InputSplit(network, [everywhere], "float32")
    assert search.step(lambda _case, _x: None) is None
    assert (search.open, search.share) == (True, 0.0)
