"""The gradient comes from the relaxation at a point, and descent finds what random points miss."""

from itertools import pairwise

import numpy as np
import pytest

from lrai.verifier.attack import Attack, AttackSettings, Objective, attack, gradients, lattice
from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.relu import Relu
from lrai.verifier.property import Case


def network(random, sizes):
    nodes = [Node("x", None, (), (sizes[0],))]
    for index, (before, after) in enumerate(pairwise(sizes)):
        operator = Affine((random.normal(size=(before, after)),), random.normal(size=after))
        nodes.append(Node(f"a{index}", operator, (len(nodes) - 1,), (after,)))
        if index + 2 < len(sizes):
            nodes.append(Node(f"r{index}", Relu(), (len(nodes) - 1,), (after,)))
    return Network(tuple(nodes), (0,), (len(nodes) - 1,), ())


def case(row, offset, size):
    return Case(np.zeros(size), np.ones(size), np.atleast_2d(row), np.atleast_1d(offset))


def test_gradient_is_that_of_finite_differences():
    random = np.random.default_rng(3)
    net = network(random, (4, 9, 7, 3))
    x, rows = random.random((5, 4)), random.normal(size=(5, 3))
    found = gradients(net, net.values(x), rows)
    step = 1e-6
    for axis in range(4):
        moved = x.copy()
        moved[:, axis] += step
        slope = ((net.evaluate(moved) - net.evaluate(x)) * rows).sum(axis=1) / step
        np.testing.assert_allclose(found[:, axis], slope, atol=1e-5)


def test_a_counterexample_in_a_far_corner_is_found():
    random = np.random.default_rng(5)
    net = network(random, (30, 40, 1))
    corner = net.evaluate(np.round(random.random((20000, 30)))).min()
    found = list(attack(net, [case([[1.0]], [corner], 30)], AttackSettings(rounds=3)))
    assert found
    assert all(net.evaluate(x[None])[0, 0] <= corner for _, x in found)
    assert all(((x >= 0) & (x <= 1)).all() for _, x in found)


def test_every_condition_of_a_case_must_hold():
    random = np.random.default_rng(7)
    net = network(random, (3, 8, 2))
    impossible = case([[1.0, 0.0], [-1.0, 0.0]], [-1.0, -1.0], 3)
    assert not list(attack(net, [impossible], AttackSettings(rounds=2, steps=10)))


def test_the_index_names_the_case_that_was_violated():
    random = np.random.default_rng(9)
    net = network(random, (3, 8, 2))
    never, always = case([[1.0, 0.0]], [-1e9], 3), case([[1.0, 0.0]], [1e9], 3)
    found = list(attack(net, [never, always], AttackSettings(rounds=1)))
    assert {index for index, _ in found} == {1}


def test_points_of_the_caller_are_tried():
    random = np.random.default_rng(11)
    net = network(random, (6, 12, 1))
    start = np.full((1, 6), 0.25)
    limit = net.evaluate(start)[0, 0] + 1e-9
    settings = AttackSettings(starts=1, steps=1)
    rounds = Attack(net, [case([[1.0]], [limit], 6)], settings)
    assert any(np.array_equal(x, start[0]) for _, x in rounds.round(start))


@pytest.mark.parametrize("rows", [0, 2])
def test_a_case_without_rows_is_unsafe_everywhere(rows):
    random = np.random.default_rng(13)
    net = network(random, (2, 4, 2))
    empty = Case(np.zeros(2), np.ones(2), np.zeros((0, 2)), np.zeros(0))
    measured = Objective(net, [empty]).measure(random.random((rows, 2)), np.zeros(rows, np.intp))
    assert (measured <= 0).all()


def test_a_needle_is_found_by_the_lattice():
    # A peak at x0 = 1/4, and flat elsewhere: descent has no gradient.
    weights = np.zeros((5, 3))
    weights[0] = 1.0
    bump = np.array([[400.0], [-800.0], [400.0]])
    nodes = (
        Node("x", None, (), (5,)),
        Node("a", Affine((weights,), np.array([0.0025, 0.0, -0.0025]) - 0.25), (0,), (3,)),
        Node("r", Relu(), (1,), (3,)),
        Node("y", Affine((bump,), np.zeros(1)), (2,), (1,)),
    )
    net = Network(nodes, (0,), (3,), ())
    needle = [case([[-1.0]], [-0.99], 5)]
    settings = AttackSettings(starts=8, steps=5, rounds=1)
    assert Attack(net, needle, settings).round() == []  # neither starts nor descent meet it
    assert next(attack(net, needle, settings))[1][0] == 0.25


def test_the_lattice_has_ends_and_centre_of_every_box_of_few_inputs():
    net = network(np.random.default_rng(15), (3, 6, 2))
    cases = [case([[1.0, 0.0]], [0.0], 3), case([[0.0, 1.0]], [0.0], 3)]
    points, owners, measure = lattice(net, cases)
    for one in (0, 1):
        mine = points[owners == one]
        for corner in ([0, 0, 0], [1, 0, 1], [0.5, 0.5, 0.5]):
            assert (mine == corner).all(axis=1).any()
    np.testing.assert_allclose(measure, Objective(net, cases).measure(points, owners))
    many = network(np.random.default_rng(15), (40, 6, 2))
    assert len(lattice(many, [case([[1.0, 0.0]], [0.0], 40)])[0]) == 0
