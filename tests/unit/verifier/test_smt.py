"""Z3 proves what holds, and offers a point where something may not."""

import numpy as np
import pytest

from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.relu import Relu
from lrai.verifier.operators.smooth import Sigmoid
from lrai.verifier.property import Case
from lrai.verifier.relu_bounds import ReluBox
from lrai.verifier.relu_split import ReluSplit
from lrai.verifier.smt import ask


def hat(operator=None):
    """y = relu(x) + relu(-x) = |x| for x in [-1, 2]."""
    return Network(
        (
            Node("x", None, (), (1,)),
            Node("a", Affine((np.array([[1.0, -1.0]]),), np.zeros(2)), (0,), (2,)),
            Node("r", operator or Relu(), (1,), (2,)),
            Node("y", Affine((np.ones((2, 1)),), np.zeros(1)), (2,), (1,)),
        ),
        (0,),
        (3,),
        (),
    )


def region(row, offset, arithmetic="real", network=None):
    case = Case(np.array([-1.0]), np.array([2.0]), np.array([[row]]), np.array([offset]))
    box = ReluBox.root(network or hat(), [case], arithmetic)
    return box, box.optimise()


@pytest.mark.parametrize(("row", "offset"), [(1.0, -0.001), (-1.0, -2.001)])
def test_what_holds_is_proved(row, offset):
    assert ask(*region(row, offset), np.array([0])).is_proved


@pytest.mark.parametrize(("row", "offset"), [(1.0, 0.001), (-1.0, -1.999)])
def test_what_fails_has_a_point(row, offset):
    exact = ask(*region(row, offset), np.array([0]))
    assert not exact.is_proved
    assert exact.point is not None
    assert row * abs(exact.point[0]) <= offset + 1e-9


def test_a_tie_is_within_what_float32_may_round():
    assert ask(*region(-1.0, -2.0 - 1e-9), np.array([0])).is_proved
    assert not ask(*region(-1.0, -2.0 - 1e-9, "float32"), np.array([0])).is_proved


def test_other_operators_stay_open():
    box, found = region(1.0, -1.0, network=hat(Sigmoid()))
    assert ask(box, found, np.array([0])).point is None


def test_a_margin_too_small_for_bounds_is_left_to_z3():
    case = Case(np.array([-1.0]), np.array([2.0]), np.array([[1.0]]), np.array([-5e-7]))
    split = ReluSplit(hat(), [case], "real")
    for _ in range(20):
        if not split.open:
            break
        assert split.step(lambda *_: None) is None
    assert not split.open
    assert not split.stuck
    assert split.share == 1.0
    arrays = split.tree.arrays()
    assert not arrays["weights"].any(axis=1).all()
