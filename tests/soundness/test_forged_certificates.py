"""A certificate that was changed, or is about something else, is refused in a sentence."""

import hashlib
import io
import json
import zipfile
from itertools import pairwise

import numpy as np
import pytest

from lrai.verifier.checker import check, leaves
from lrai.verifier.instance import Instance, solve

KINDS = {
    **dict.fromkeys(("box", "rows", "offset", "at", "weights"), "<f8"),
    **dict.fromkeys(("claim", "slope", "tables", "table"), "<u4"),
    "slopes": "u1",
    "axis": "<i4",
    "betas": "<f4",
}


class Proof:
    """A certificate taken apart, to be changed and put together again with a right digest."""

    def __init__(self, path):
        with zipfile.ZipFile(path) as archive:
            self.parts = {name: archive.read(name) for name in archive.namelist()}

    def header(self, **changes):
        header = json.loads(self.parts["header.json"]) | changes
        self.parts["header.json"] = json.dumps(header).encode()

    def array(self, name):
        return np.frombuffer(self.parts[f"0/{name}"], KINDS[name]).copy()

    def put(self, name, array):
        self.parts[f"0/{name}"] = np.asarray(array, KINDS[name]).tobytes()

    def write(self, path):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, part in self.parts.items():
                archive.writestr(name, part)
            archive.comment = b"0" * 64
        body = content.getvalue()[:-64]
        path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())


@pytest.fixture(scope="module")
def proved(module_bench):
    """A model, a property with two conditions, and the certificate of a tree with many leaves."""
    rng = np.random.default_rng(3)
    layers = [(rng.normal(size=pair), rng.normal(size=pair[1]) / 4) for pair in ((2, 12), (12, 12))]
    layers.append((rng.normal(size=(12, 2)), rng.normal(size=2)))
    model = module_bench.dense(layers)
    highest = np.array([sample(layers, rng) @ row for row in ([1, 0], [0, 1])]).max(axis=1) + 0.5
    text = f"(or (and (>= Y_0 {highest[0]:.2f}) (>= Y_1 -50)) (>= Y_1 {highest[1]:.2f}))"
    subject = module_bench.property(text, [-1.0, -1.0], [1.0, 1.0], 2)
    verdict = module_bench.decide(model, subject)
    assert verdict.answer == "unsat"
    path = module_bench.folder / "proof"
    verdict.certificate.write(path)
    return path, model, subject, layers


def sample(layers, rng):
    value = rng.uniform(-1, 1, (20_000, 2))
    for index, (weights, bias) in enumerate(layers):
        value = value @ weights + bias
        value = np.maximum(value, 0) if index < len(layers) - 1 else value
    return value


def test_the_certificate_is_accepted_as_it_is(proved, tmp_path):
    path, model, subject, _ = proved
    Proof(path).write(tmp_path / "again")
    for one in (path, tmp_path / "again"):
        result = check(one, [model], subject)
        assert result.accepted, result.reason
        assert result.leaves > 5


def test_random_leaves_are_proved_by_z3_as_well(proved):
    path, model, subject, _ = proved
    result = check(path, [model], subject, exact=3)
    assert (result.accepted, result.exact) == (True, 3)


def drop_last_leaf(proof):
    axis = proof.array("axis")
    leaves = int((axis == -1).sum())
    proof.put("axis", axis[:-1])
    proof.put("at", proof.array("at")[:-1])
    for name in ("weights", "slope"):
        array = proof.array(name)
        proof.put(name, array[: array.size // leaves * (leaves - 1)])


def edit(name, index, value):
    def change(proof):
        array = proof.array(name)
        array[index] = value(array[index]) if callable(value) else value
        proof.put(name, array)

    return change


def add_a_pair_of_leaves(proof):
    proof.put("axis", [*proof.array("axis"), -1])
    proof.put("at", [*proof.array("at"), 0.0])


FORGERIES = {
    "a leaf removed": drop_last_leaf,
    "a leaf too many": add_a_pair_of_leaves,
    "the box shrunk from below": edit("box", 0, lambda low: low + 1e-9),
    "the box shrunk from above": edit("box", 3, lambda high: high - 0.5),
    "the box turned over": edit("box", 0, 2.0),
    "a condition turned over": edit("rows", 0, lambda row: 1.0 - row),
    "an offset lowered": edit("offset", slice(None), lambda offset: offset - 100),
    "an offset not finite": edit("offset", 0, -np.inf),
    "a claim without number": edit("claim", 0, 7),
    "a claim beyond all numbers": edit("claim", 0, 2**32 - 1),
    "a split outside of the box": edit("at", 0, 5.0),
    "a split nowhere": edit("at", 0, np.nan),
    "a split of an unknown input": edit("axis", 0, 2),
    "a split of an unknown neuron": edit("axis", 0, -2 - 24),
    "a split of no neuron at all": edit("axis", 0, -(2**31)),
    "a negative weight": edit("weights", 0, -1.0),
    "a weight not a number": edit("weights", 0, np.nan),
    "too few weights": lambda proof: proof.put("weights", proof.array("weights")[:-1]),
    "a claim without weights": edit(
        "weights", slice(None), lambda weights: weights * (np.arange(weights.size) % 3 < 2)
    ),
    "an unknown row of slopes": edit("slope", 0, 1),
    "a row of slopes beyond all numbers": edit("slope", 0, 2**32 - 1),
    "an unknown table": edit("table", 0, 1),
    "a table beyond all numbers": edit("table", 0, 2**32 - 1),
    "a box for another number of inputs": lambda proof: proof.put("box", [-1.0, 1.0]),
    "a box of infinite width": edit("box", 0, -np.inf),
    "a box from nowhere": edit("box", 0, np.nan),
    "a weight that is infinite": edit("weights", 0, np.inf),
    "a multiplier for no split": lambda proof: proof.put("betas", [1.0]),
    "a strange table of slopes": lambda proof: proof.put("tables", [1] * 5),
    "half an array": lambda proof: proof.parts.__setitem__("0/at", b"123"),
    "an array missing": lambda proof: proof.parts.pop("0/at"),
    "an array too many": lambda proof: proof.parts.__setitem__("0/more", b""),
    "another format": lambda proof: proof.header(format="lrai-certificate-2"),
    "another arithmetic": lambda proof: proof.header(arithmetic="exact"),
    "no trees": lambda proof: proof.header(trees=0),
    "many trees": lambda proof: proof.header(trees=10**9),
    "trees without end": lambda proof: proof.header(trees=-1),
    "no inputs": lambda proof: proof.header(inputs=[]),
    "inputs that are one": lambda proof: proof.header(inputs=[0, 0]),
    "an input too many": lambda proof: proof.header(inputs=[0, 1, 2]),
    "inputs without numbers": lambda proof: proof.header(inputs=[{}, None]),
    "no models": lambda proof: proof.header(models=[]),
    "models that are a number": lambda proof: proof.header(models=1),
    "a header that is no JSON": lambda proof: proof.parts.__setitem__("header.json", b"[" * 10**5),
    "a header that is a list": lambda proof: proof.parts.__setitem__("header.json", b"[]"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_changed_certificate_is_refused(proved, tmp_path, forgery):
    path, model, subject, _ = proved
    proof = Proof(path)
    FORGERIES[forgery](proof)
    proof.write(tmp_path / "forged")
    result = check(tmp_path / "forged", [model], subject)
    assert not result.accepted
    assert result.reason


def retargeted(proof, model, subject):
    proof.header(
        models=[hashlib.sha256(model.read_bytes()).hexdigest()],
        property=hashlib.sha256(subject.read_bytes()).hexdigest(),
    )


def test_another_model_or_property_is_refused_even_with_its_hash(proved, bench):
    path, model, subject, layers = proved
    weights = [(np.array(one), np.array(bias)) for one, bias in layers]
    weights[-1][1][1] += 10.0
    worse = bench.dense(weights, name="worse")
    text = subject.read_text().replace("X_0 1.0", "X_0 1.0000001")
    wider = bench.folder / "wider.vnnlib"
    wider.write_text(text)
    for models, one in (([worse], subject), ([model], wider), ([model, model], subject)):
        assert not check(path, models, one).accepted
        proof = Proof(path)
        retargeted(proof, models[0], one)
        proof.write(bench.folder / "forged")
        assert not check(bench.folder / "forged", models, one).accepted


def test_one_weight_changed_in_its_last_bit_is_another_model(proved, bench):
    path, _, subject, layers = proved
    first = np.array(layers[0][0], np.float32)
    first[0, 0] = np.nextafter(first[0, 0], np.float32(9))
    other = bench.dense([(first, layers[0][1]), *layers[1:]], name="other")
    assert "another model" in check(path, [other], subject).reason


def test_random_changes_never_make_a_wrong_property_accepted(proved, bench):
    path, _, subject, layers = proved
    worse = bench.dense([*layers[:-1], (layers[-1][0], layers[-1][1] + 10.0)], name="worse")
    rng = np.random.default_rng(5)
    for _ in range(40):
        proof = Proof(path)
        retargeted(proof, worse, subject)
        name = str(rng.choice([part for part in proof.parts if len(proof.parts[part])]))
        content = bytearray(proof.parts[name])
        for place in rng.integers(len(content), size=int(rng.integers(1, 4))):
            content[place] ^= 1 << int(rng.integers(8))
        proof.parts[name] = bytes(content)
        proof.write(bench.folder / "forged")
        assert not check(bench.folder / "forged", [worse], subject).accepted


def test_a_damaged_file_is_refused(proved, tmp_path):
    path, model, subject, _ = proved
    content = path.read_bytes()
    rng = np.random.default_rng(6)
    damaged = [content[:size] for size in (0, 1, 63, 64, 65, len(content) // 2, len(content) - 1)]
    for place in rng.integers(len(content), size=100):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(changed))
    for one in (*damaged, b"PK\x05\x06" + bytes(100), model.read_bytes()):
        (tmp_path / "damaged").write_bytes(one)
        assert not check(tmp_path / "damaged", [model], subject).accepted


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    proved, tmp_path, monkeypatch
):
    path, model, subject, _ = proved
    monkeypatch.setattr(leaves, "_MAX_BYTES", 1 << 20)
    proof = Proof(path)
    proof.parts["0/at"] = bytes(1 << 24)
    proof.write(tmp_path / "bomb")
    result = check(tmp_path / "bomb", [model], subject)
    assert not result.accepted
    assert "unpacks" in result.reason


TWO_NETWORKS = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1, 2]) (declare-output Y float32 [1, 2]))
(declare-network g ({relation} f)
  (declare-input V float32 [1, 2]) (declare-output W float32 [1, 2]))
(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] -1.0) (<= X[0,1] 1.0)))
(assert (and (== X[0,0] V[0,0]) (== V[0,1] X[0, 1])))
(assert (or (>= (- Y[0,1] W[0,1]) 0.01) (>= (- W[0,1] Y[0,1]) 0.01)))
"""


def test_two_networks_that_are_near_are_proved_near_again(proved, bench):
    _, model, _, layers = proved
    near = bench.dense([*layers[:-1], (layers[-1][0], layers[-1][1] + 1e-3)], name="near")
    far = bench.dense([*layers[:-1], (layers[-1][0], layers[-1][1] + 2e-2)], name="far")
    subject = bench.folder / "two.vnnlib"
    subject.write_text(TWO_NETWORKS.format(relation="isomorphic-to"))
    verdict = solve(Instance((model, near), subject, 20.0))
    assert verdict.answer == "unsat"
    path = bench.folder / "proof"
    verdict.certificate.write(path)
    assert check(path, [model, near], subject).accepted
    assert not check(path, [near, model], subject).accepted
    assert not check(path, [model], subject).accepted
    proof = Proof(path)
    proof.header(models=[hashlib.sha256(one.read_bytes()).hexdigest() for one in (model, far)])
    proof.write(path)
    assert "does not close" in check(path, [model, far], subject).reason


def test_a_network_beside_itself_is_proved_equal_again(proved, bench):
    _, model, _, _ = proved
    subject = bench.folder / "two.vnnlib"
    subject.write_text(TWO_NETWORKS.format(relation="equal-to"))
    verdict = solve(Instance((model,), subject, 20.0))
    assert verdict.answer == "unsat"
    verdict.certificate.write(bench.folder / "proof")
    result = check(bench.folder / "proof", [model], subject)
    assert result.accepted, result.reason


@pytest.fixture(scope="module")
def split_neurons(module_bench):
    """A network with too many inputs to split: its certificate splits neurons."""
    rng = np.random.default_rng(3)
    sizes = (20, 14, 10, 1)
    layers = [
        (rng.normal(size=pair) / np.sqrt(pair[0]), rng.normal(size=pair[1]) / 4)
        for pair in pairwise(sizes)
    ]
    model = module_bench.dense(layers, name="wide")
    text = "(>= Y_0 0.7)"
    subject = module_bench.property(text, [-1.0] * 20, [1.0] * 20, 1, "wide")
    verdict = module_bench.decide(model, subject)
    assert verdict.answer == "unsat", verdict
    path = module_bench.folder / "wide-proof"
    verdict.certificate.write(path)
    return path, model, subject


def test_a_tree_of_neurons_is_proved_again(split_neurons):
    path, model, subject = split_neurons
    result = check(path, [model], subject)
    assert result.accepted, result.reason
    assert (Proof(path).array("axis") < -1).any()


@pytest.mark.parametrize(
    "forgery",
    [
        edit("betas", 0, -1.0),
        edit("betas", 0, np.nan),
        lambda proof: proof.put("betas", proof.array("betas")[:-1]),
        lambda proof: proof.put("slopes", proof.array("slopes")[:-1]),
        lambda proof: proof.put("table", proof.array("table") + 2),
        lambda proof: proof.put("table", proof.array("table")[:-1]),
        lambda proof: proof.put("tables", proof.array("tables") + 10**6),
        lambda proof: proof.put("tables", proof.array("tables")[:-1]),
        lambda proof: proof.put("axis", np.where(proof.array("axis") < -1, -2, -1)),
        lambda proof: proof.put("axis", np.where(proof.array("axis") < -1, -26, -1)),
        drop_last_leaf,
    ],
)
def test_a_changed_tree_of_neurons_is_refused(split_neurons, tmp_path, forgery):
    path, model, subject = split_neurons
    proof = Proof(path)
    forgery(proof)
    proof.write(tmp_path / "forged")
    result = check(tmp_path / "forged", [model], subject)
    assert not result.accepted
    assert result.reason


def test_a_proof_over_the_reals_is_no_proof_for_float32(bench):
    # y = 2**25 x + x - 2**25 x: over the reals x, in float32 whatever the order makes of it.
    layers = [(np.ones((1, 3)), np.zeros(3)), ([[2.0**25], [1.0], [-(2.0**25)]], [0.0])]
    model = bench.dense(layers)
    subject = bench.property("(<= Y_0 0.5)", [1.0], [1.5], 1)
    verdict = bench.decide(model, subject, "real")
    assert verdict.answer == "unsat"
    path = bench.folder / "proof"
    verdict.certificate.write(path)
    assert check(path, [model], subject).accepted
    proof = Proof(path)
    proof.header(arithmetic="float32")
    proof.write(path)
    assert "does not close" in check(path, [model], subject).reason
