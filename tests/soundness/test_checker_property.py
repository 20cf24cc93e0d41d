"""The checker's comparison of regions with a property: nothing unsafe may be left out."""

import numpy as np
import pytest

from lrai.verifier.checker.graph import RefusedError
from lrai.verifier.checker.vnnlib import Query

TEXT = """(set-logic QF_LRA) ; a comment (
(declare-const X_0 Real) (declare-fun Y_0 () Real)
(assert (and (>= X_0 -1.5e-1) (<= X_0 .25)))
(assert (or (< Y_0 (- 2)) (>= (* 2 Y_0) 3.5)))
(check-sat)"""
LOW, HIGH = [1.0, 0.0], [-1.0, 0.0]
"""Rows over Y_0, then X_0: Y_0 <= -2 and Y_0 >= 1.75."""


def region(low, high, rows, offset, claim):
    box = np.array([[low], [high]], float)
    return {
        "box": box,
        "rows": np.array(rows, float),
        "offset": np.array(offset, float),
        "claim": np.array(claim),
    }


BEGIN = np.nextafter(-0.15, -1)
"""The float that is nearest to -0.15 is above it."""
WHOLE = region(BEGIN, 0.25, [LOW, HIGH], [-2, -1.75], [0, 1])


def is_left_out(text, *regions):
    return Query(text).left_out(np.arange(1), 1, regions)


def test_what_covers_a_property_leaves_nothing_out():
    assert not is_left_out(TEXT, WHOLE)
    halves = [
        region(-0.2, 0.3, [LOW], [-2], [0]),
        region(-0.2, 0.0, [HIGH], [-1.75], [0]),
        region(0.0, 0.3, [HIGH], [-1.5], [0]),
    ]
    assert not is_left_out(TEXT, *halves)
    assert is_left_out(TEXT, *halves[1:])
    assert is_left_out(TEXT, *halves[:2])


@pytest.mark.parametrize(
    "change",
    [
        {"low": -0.15},
        {"high": 0.25 - 2**-54},
        {"claim": [0, 0]},
        {"offset": [-2, np.nextafter(-1.75, -2)]},
        {"offset": [-2 - 1e-15, -1.75]},
        {"rows": [LOW, [-1.0, 1e-9]]},
        {"rows": [LOW, LOW]},
    ],
)
def test_the_least_that_is_left_out_is_seen(change):
    given = {"low": BEGIN, "high": 0.25, "rows": [LOW, HIGH], "offset": [-2, -1.75]}
    assert is_left_out(TEXT, region(**(given | {"claim": [0, 1]} | change)))


def test_no_region_leaves_everything_out():
    assert is_left_out(TEXT)
    assert not is_left_out(TEXT + "(assert (< X_0 -1))")


def test_what_stands_behind_the_end_does_not_count():
    assert is_left_out(TEXT + "(exit)(assert (< X_0 -1))")


@pytest.mark.parametrize("end", ["not a number", np.nan, np.inf])
def test_a_region_without_finite_ends_is_an_error(end):
    with pytest.raises((ValueError, OverflowError)):
        is_left_out(TEXT, region(-0.15, end, [LOW], [-2], [0]))


@pytest.mark.parametrize(
    "text",
    [
        "(push 1)(assert (< X_0 0))(pop 1)",
        "(reset)",
        '(set-info :source "quoted")',
        "(set-info :source |(assert false)|)",
        "(define-fun X_0 () Real 0.0)",
        "(declare-network f (declare-input X float32 []))",
        "(declare-network f (declare-input X float32 [99999, 99999]))",
    ],
)
def test_commands_that_change_what_was_said_are_refused(text):
    with pytest.raises(RefusedError):
        Query(TEXT + text)


def test_inputs_are_one_only_where_the_property_says_so():
    text = """(declare-network f (declare-input X float32 [1, 1]) (declare-output Y float32 [1]))
    (declare-network g (isomorphic-to f) (declare-input V float32 [1]) (declare-output W float32 [1]))
    (assert (and (>= X[0, 0] 0) (<= X[0,0] 1) EQUAL (> Y[0] W[0])))"""
    one = region(0, 1, [[-1.0, 1.0, 0.0]], [0], [0])
    for equal, is_one in (("(== V[0] X[0,0])", True), ("(<= 0 V[0] 1)", False)):
        query = Query(text.replace("EQUAL", equal))
        assert query.models == [0, 1]
        assert query.left_out(np.array([0, 0]), 2, [one]) is not is_one
