"""Trees that split inputs first and neurons below are proved again, leaf by leaf."""

import numpy as np
import pytest

from lrai.verifier.certificate import Certificate, Tree
from lrai.verifier.checker import check
from lrai.verifier.instance import Instance, read

LAYERS = [([[1.0], [0.0]], [0.0]), ([[1.0]], [0.0])]
"""y = relu(x0)."""
TEXT = "(and (<= (+ X_0 X_1) -0.1) (>= Y_0 0.05))"


def multipliers(value):
    return np.array([[value]])


def certificate(bench, betas=1.0, slopes=None, exact=False, order=(0, 1)):
    """A tree over x1, then over the sign of the neuron: below it nothing is left of either side."""
    model = bench.dense(LAYERS)
    subject = bench.property(TEXT, [-1.0, 0.0], [1.0, 0.05], 1)
    network, found, _ = read(Instance((model,), subject, 1.0))
    tree = Tree(found.cases, 1)
    rows = np.concatenate([found.cases[0].output_rows, found.cases[0].input_rows], axis=1)
    # One condition is about the output, the other about the inputs.
    about_output = np.abs(rows[:, :1]).T > 0
    table = None if slopes is None else np.full((1, 1), slopes, np.uint8)
    for half in tree.split(0, 1, 0.02):
        leaves = tree.split(half, -2)
        below, above = leaves[order[0]], leaves[order[1]]
        tree.close(below, about_output.astype(float), table, multipliers(0.0))
        if exact:
            tree.close_exactly(above)
        else:
            tree.close(above, 1.0 - about_output, table, multipliers(betas))
    path = bench.folder / "mixed"
    Certificate(network.digests, found, "float32", (tree,), (0, 1)).write(path)
    return path, model, subject


@pytest.mark.parametrize("slopes", [None, 0, 255])
@pytest.mark.parametrize("exact", [False, True])
def test_a_neuron_below_an_input_is_closed_with_its_multipliers(bench, slopes, exact):
    path, model, subject = certificate(bench, slopes=slopes, exact=exact)
    result = check(path, [model], subject, exact=4)
    assert result.accepted, result.reason
    assert result.leaves == 4
    assert result.exact == (2 if exact else 4)


@pytest.mark.parametrize("wrong", [{"betas": 1e3}, {"order": (1, 0)}])
def test_with_other_multipliers_or_conditions_it_stays_open(bench, wrong):
    path, model, subject = certificate(bench, **wrong)
    result = check(path, [model], subject)
    assert not result.accepted
    assert "does not close" in result.reason
