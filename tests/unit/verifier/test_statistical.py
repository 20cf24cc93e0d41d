"""A statistical certificate: the counts are right, repeatable, and its bound covers."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrai.errors import InvalidInputError
from lrai.testing.models import save
from lrai.verifier.clopper_pearson import upper_bound
from lrai.verifier.statistical import NoisyRows, Plan, Uniform, certify, draw

UNIT = Uniform(np.zeros(2), np.ones(2))


def step(path, threshold, height):
    """`y = x` where the first element is below the threshold, else `x + height`."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    weights = [
        numpy_helper.from_array(np.array(value), name)
        for name, value in (
            ("zero", [0]),
            ("one", [1]),
            ("t", np.float32(threshold)),
            ("h", np.float32(height)),
        )
    ]
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
        helper.make_node("GreaterOrEqual", ["first", "t"], ["above"]),
        helper.make_node("Cast", ["above"], ["raised"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["raised", "h"], ["lift"]),
        helper.make_node("Add", ["x", "lift"], ["y"]),
    ]
    return save(path, nodes, info[:1], info[1:], weights)


@pytest.fixture
def models(tmp_path):
    """Two models that differ by 0.5 in one of four cases of the unit square."""
    return step(tmp_path / "f.onnx", 2, 0.5), step(tmp_path / "q.onnx", 0.75, 0.5)


def test_count_is_what_numpy_counts(models):
    plan = Plan(*models, UNIT, epsilon=0.1, n=70_000, seed=3)
    certificate = certify(plan)
    x = np.concatenate([draw(plan, 0, 65_536), draw(plan, 1, 70_000 - 65_536)])
    assert certificate.k == int((x[:, 0] >= 0.75).sum())
    assert certificate.rate == upper_bound(certificate.k, 70_000, 0.001)
    assert certificate.largest == pytest.approx(0.5, abs=1e-6)
    assert certificate.where[0] >= 0.75


def test_workers_do_not_change_the_certificate(models):
    plan = Plan(*models, UNIT, epsilon=0.1, n=70_000, seed=3)
    assert certify(plan, workers=2) == certify(plan)


def test_another_seed_draws_other_cases(models):
    first, second = (certify(Plan(*models, UNIT, 0.1, 1000, seed=seed)) for seed in (1, 2))
    assert first.where != second.where


def test_epsilon_is_in_units_of_the_scale(models):
    assert certify(Plan(*models, UNIT, epsilon=0.3, n=1000, scale=1.0)).k > 0
    assert certify(Plan(*models, UNIT, epsilon=0.3, n=1000, scale=2.0)).k == 0


def test_not_a_number_is_a_violation(tmp_path, models):
    broken = step(tmp_path / "nan.onnx", 0.75, np.nan)
    certificate = certify(Plan(models[0], broken, UNIT, epsilon=100, n=1000))
    assert certificate.k == 1000  # 0 * nan is nan: every output is spoiled
    assert json.loads(certificate.to_json())["largest"] is None


def test_certificate_names_everything_that_repeats_it(models):
    document = json.loads(certify(Plan(*models, UNIT, epsilon=0.1, n=100, seed=7)).to_json())
    assert document["kind"] == "statistical"
    assert document["distribution"] == {"kind": "uniform", "lower": [0, 0], "upper": [1, 1]}
    assert {key: document[key] for key in ("n", "alpha", "epsilon", "scale", "seed")} == {
        "n": 100,
        "alpha": 0.001,
        "epsilon": 0.1,
        "scale": 1.0,
        "seed": 7,
    }
    assert len(set(document["models"])) == 2
    assert document["generator"].startswith("PCG64")
    assert document["adversarial"] is None


def test_adversarial_candidates_are_reported_apart_from_the_bound(models):
    plan = Plan(*models, UNIT, epsilon=0.1, n=100)
    hidden = np.array([[0.8, 0.5], [0.1, 0.1]], np.float32)
    certificate = certify(plan, candidates=hidden)
    assert (certificate.k, certificate.rate) == (certify(plan).k, certify(plan).rate)
    assert certificate.adversarial["candidates"] == 2
    assert certificate.adversarial["largest"] == pytest.approx(0.5, abs=1e-6)


def test_noisy_rows_stay_around_the_rows():
    rows = np.array([[0, 0], [10, 10]], np.float32)
    x = NoisyRows(rows, 0.5).draw(np.random.default_rng(0), 1000)
    distance = np.abs(x[:, None] - rows).max(axis=2).min(axis=1)
    assert distance.max() <= 0.5
    assert 300 < (x[:, 0] > 5).sum() < 700


def test_uniform_cases_never_leave_the_box_by_rounding():
    lower = np.array([0.1, 1.0])
    upper = np.nextafter(np.array([0.1, 1.0]).astype(np.float32), np.float32(2)).astype(np.float64)
    x = Uniform(lower, upper).draw(np.random.default_rng(0), 1000).astype(np.float64)
    assert (x >= lower).all()
    assert (x <= upper).all()


@pytest.mark.parametrize(
    "change", [{"n": 0}, {"alpha": 0.0}, {"epsilon": -1.0}, {"scale": 0.0}, {"seed": -1}]
)
def test_a_plan_without_meaning_is_refused(models, change):
    with pytest.raises(InvalidInputError, match=next(iter(change))):
        certify(Plan(*models, UNIT, **({"epsilon": 0.1, "n": 10} | change)))


def test_models_of_other_output_sizes_are_refused(tmp_path, models):
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", d])
        for n, d in (("x", 2), ("y", 4))
    ]
    double = helper.make_node("Concat", ["x", "x"], ["y"], axis=1)
    other = save(tmp_path / "other.onnx", [double], info[:1], info[1:])
    with pytest.raises(InvalidInputError, match="2 and 4 outputs"):
        certify(Plan(models[0], other, UNIT, epsilon=0.1, n=10))
