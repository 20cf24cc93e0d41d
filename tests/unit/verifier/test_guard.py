"""A guard covers exactly the boxes of its certificate, and survives its file."""

import hashlib
import json

import numpy as np
import pytest

from lrai.errors import InvalidInputError, VerifierError
from lrai.verifier.certificate import Certificate, Tree
from lrai.verifier.guard import Guard, GuardedInput, guard_of_certificate, read_guard
from lrai.verifier.input_box import InputBox
from lrai.verifier.network import Network, Node
from lrai.verifier.property import Case, Property

MODEL = "ab" * 32
NETWORK = Network(
    (Node("speed", None, (), (1,)), Node("angles", None, (), (1, 2))), (0, 1), (1,), (MODEL,)
)


def box(low, high):
    return InputBox(np.array(low, float), np.array(high, float))


def guard(*boxes):
    inputs = (GuardedInput("speed", 1), GuardedInput("angles", 2))
    return Guard(MODEL, "cd" * 32, "safe", inputs, boxes)


def certificate(path, boxes, models=(MODEL,)):
    trees = []
    for low, high in boxes:
        case = Case(np.array(low, float), np.array(high, float), np.ones((1, 2)), np.zeros(1))
        trees.append(Tree([case], hidden=0))
        trees[-1].close(0)
    subject = Property((), "ef" * 32, "text")
    Certificate(models, subject, "float32", tuple(trees), (0, 1, 2)).write(path)
    return path


def test_rows_in_any_box_are_covered():
    covered = guard(box([0, 0, 0], [1, 1, 1]), box([2, 0, 0], [3, 1, 1])).covers(
        np.array([[0.5, 1, 0], [1.5, 0, 0], [2, 0, 1], [0.5, 0, np.nan], [0, 0, 2]], np.float32)
    )
    assert covered.tolist() == [True, False, True, False, False]


def test_the_last_float32_inside_is_covered_and_the_next_is_not():
    limit = np.float32(0.1)  # a little above 0.1
    just = guard(box([0, 0, 0], [0.1, 1, 1]))
    rows = np.array([[np.nextafter(limit, np.float32(0)), 0, 0], [limit, 0, 0]], np.float32)
    assert just.covers(rows).tolist() == [True, False]


def test_certificate_becomes_a_guard(tmp_path):
    path = certificate(tmp_path / "p", [([0, 0, 0], [1, 1, 1]), ([4, 0, 0], [5, 1, 1])])
    made = guard_of_certificate(NETWORK, path, "safe")
    assert made.inputs == (GuardedInput("speed", 1), GuardedInput("angles", 2))
    assert made.certificate == hashlib.sha256(path.read_bytes()).hexdigest()
    assert made.covers(np.array([[4.5, 0, 1], [2, 0, 0]], np.float32)).tolist() == [True, False]


def test_a_guard_survives_its_file(tmp_path):
    path = tmp_path / "guard.json"
    original = guard(box([0, 0.1, -3e38], [1, 0.7, 3e38]))
    original.write(path)
    again = read_guard(path)
    assert (again.model, again.certificate, again.inputs) == (MODEL, "cd" * 32, original.inputs)
    assert again.boxes[0].lower.tolist() == original.boxes[0].lower.tolist()
    assert again.boxes[0].upper.tolist() == original.boxes[0].upper.tolist()


def test_another_model_or_file_is_refused(tmp_path):
    other = certificate(tmp_path / "o", [([0, 0, 0], [1, 1, 1])], models=("00" * 32,))
    with pytest.raises(VerifierError, match="another model"):
        guard_of_certificate(NETWORK, other, "safe")
    (tmp_path / "x").write_bytes(b"no zip")
    with pytest.raises(VerifierError, match="is no certificate"):
        guard_of_certificate(NETWORK, tmp_path / "x", "safe")
    with pytest.raises(InvalidInputError, match="does not fit a row of 3"):
        guard_of_certificate(NETWORK, certificate(tmp_path / "s", [([0], [1])]), "safe")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"boxes": []},
        {"boxes": [{"lower": [0, 0], "upper": [1, 1]}]},
        {"boxes": [{"lower": [0, 0, 9], "upper": [1, 1, 1]}]},
        {"boxes": [{"lower": [0, 0, "x"], "upper": [1, 1, 1]}]},
        {"boxes": [{"lower": [0, 0, None], "upper": [1, 1, 1]}]},
        {"boxes": [{"upper": [1, 1, 1]}]},
        {"inputs": 3},
        {"extra": 1},
    ],
)
def test_files_that_are_no_guards_are_refused(tmp_path, change):
    path = tmp_path / "guard.json"
    guard(box([0, 0, 0], [1, 1, 1])).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidInputError, match="hint: "):
        read_guard(path)


def test_junk_and_missing_files_are_refused(tmp_path):
    (tmp_path / "junk").write_bytes(b"\xff{")
    for name in ("junk", "missing"):
        with pytest.raises(InvalidInputError, match="is no guard"):
            read_guard(tmp_path / name)
