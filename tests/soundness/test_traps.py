"""Networks made to fool a verifier: hidden counterexamples, and sums that depend on their order."""

import numpy as np
import pytest


def bump(rng, inputs, width):
    """A random network plus a bump of height 1 at one point, `width` wide, above 0 only there."""
    centre = rng.uniform(-0.9, 0.9, inputs).astype(np.float32).astype(float)
    noise, out = rng.normal(size=(inputs, 8)), rng.normal(size=(8, 1)) / 200
    # |x - c| in every direction, then relu(1 - |x - c| / width).
    first = np.concatenate([np.eye(inputs), -np.eye(inputs), noise], axis=1)
    shift = np.concatenate([-centre, centre, rng.normal(size=8)])
    second = np.zeros((2 * inputs + 8, 9))
    second[: 2 * inputs, 0] = -1 / width
    second[2 * inputs :, 1:] = np.eye(8)
    bias = np.zeros(9)
    bias[0] = 1.0
    third = np.concatenate([[[1.0]], out])
    return [(first, shift), (second, bias), (third, [-0.5])], centre


@pytest.mark.parametrize("inputs", [2, 3, 5])
@pytest.mark.parametrize("width", [0.3, 0.01, 0.001])
def test_a_hidden_counterexample_is_never_proved_absent(bench, inputs, width):
    layers, _ = bump(np.random.default_rng(inputs), inputs, width)
    model = bench.dense(layers)
    subject = bench.property("(>= Y_0 0.3)", [-1.0] * inputs, [1.0] * inputs, 1)
    assert bench.decide(model, subject, seconds=2.0).answer in ("sat", "unknown")


def test_a_wide_bump_is_found_and_a_moved_box_is_proved(bench):
    layers, centre = bump(np.random.default_rng(7), 2, 0.3)
    model = bench.dense(layers)
    around = bench.property("(>= Y_0 0.3)", [-1.0, -1.0], [1.0, 1.0], 1, "around")
    beside = bench.property(
        "(>= Y_0 0.3)", [centre[0] + 0.31, -1.0], [centre[0] + 0.9, 1.0], 1, "beside"
    )
    assert bench.decide(model, around).answer == "sat"
    assert bench.decide(model, beside).answer == "unsat"


def cancelling(rng, terms, scale):
    """y = sum of huge products that cancel over the reals, plus x_0, which some orders lose."""
    columns = rng.permutation(2 * terms + 1)
    first = np.ones((1, 2 * terms + 1))
    weights = np.empty((2 * terms + 1, 1))
    huge = scale * 2.0 ** rng.integers(0, 3, terms)
    weights[columns] = np.concatenate([huge, -huge, [1.0]])[:, None]
    return [(first, np.zeros(2 * terms + 1)), (weights, [0.0])]


@pytest.mark.parametrize("seed", range(6))
def test_what_some_order_of_summation_breaks_is_never_proved_for_float32(bench, seed):
    rng = np.random.default_rng(seed)
    layers = cancelling(rng, int(rng.integers(1, 6)), 2.0**25)
    model = bench.dense(layers)
    # Over the reals y is x, at least 1; in float32 2**25 + x - 2**25 is 0 or a multiple of 4.
    subject = bench.property("(<= Y_0 0.5)", [1.0], [1.5], 1)
    assert bench.decide(model, subject, "float32", seconds=2.0).answer in ("sat", "unknown")
    assert bench.decide(model, subject, "real", seconds=2.0).answer in ("sat", "unsat")


def test_a_margin_above_the_rounding_is_proved_for_float32(bench):
    layers = cancelling(np.random.default_rng(1), 2, 8.0)
    model = bench.dense(layers)
    subject = bench.property("(<= Y_0 0.5)", [1.0], [1.5], 1)
    assert bench.decide(model, subject, "float32").answer == "unsat"


def test_a_chain_of_small_losses_is_not_proved_for_float32(bench):
    # 400 products of about 1, of which each sum may lose 2**-24 relatively: y may be below 400.
    layers = [(np.ones((1, 400)), np.zeros(400)), (np.ones((400, 1)), [0.0])]
    model = bench.dense(layers)
    subject = bench.property("(< Y_0 399.99999)", [1.0], [1.0001], 1)
    assert bench.decide(model, subject, "real").answer == "unsat"
    assert bench.decide(model, subject, "float32", seconds=2.0).answer != "unsat"
