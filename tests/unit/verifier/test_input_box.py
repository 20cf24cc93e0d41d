"""Regions from files: exact numbers, rounded outward; every other file is refused in a sentence."""

from fractions import Fraction

import numpy as np
import pytest

from lrai.errors import PropertyError
from lrai.verifier.input_box import ball, read_box


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_with_two_sides(tmp_path):
    box = read_box(write(tmp_path, "r.toml", "lower = [0, -1.5]\nupper = 2\n"), 2, 1)
    assert box.lower.tolist() == [0, -1.5]
    assert box.upper.tolist() == [2, 2]


def test_toml_with_a_ball_is_cut(tmp_path):
    text = "centre = [0.5, 1]\nradius = 0.25\nleast = 0\ngreatest = 1\n"
    box = read_box(write(tmp_path, "r.toml", text), 2, 1)
    assert box.lower.tolist() == [0.25, 0.75]
    assert box.upper.tolist() == [0.75, 1]


def test_csv_has_a_line_per_element(tmp_path):
    box = read_box(write(tmp_path, "r.csv", "lower,upper\n-1,1\n 0, 2e1\n"), 2, 1)
    assert box.lower.tolist() == [-1, 0]
    assert box.upper.tolist() == [1, 20]


def test_vnnlib_gives_its_input_box(tmp_path):
    text = "".join(f"(declare-const {name} Real)" for name in ("X_0", "Y_0"))
    text += "(assert (>= X_0 -1)) (assert (<= X_0 2)) (assert (<= Y_0 0))"
    box = read_box(write(tmp_path, "r.vnnlib", text), 1, 1)
    assert (box.lower.tolist(), box.upper.tolist()) == ([-1], [2])


def test_decimals_are_rounded_outward(tmp_path):
    box = read_box(write(tmp_path, "r.toml", "lower = [0.1, 0.7]\nupper = [0.1, 0.7]\n"), 2, 1)
    for low, high, exact in zip(box.lower, box.upper, ("0.1", "0.7"), strict=True):
        assert Fraction(low) < Fraction(exact) < Fraction(high)
        assert high == np.nextafter(low, 1)


def test_ball_contains_what_is_within_the_radius():
    box = ball(np.array([0.1, 0.95]), 0.1, 0, 1)
    assert box.lower[0] == 0
    assert box.upper[1] == 1
    assert Fraction(box.upper[0]) >= Fraction(0.1) + Fraction(0.1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.toml", "lower = [0]\nupper = [1]\n", "1 lower and 1 upper.*2 elements"),
        ("r.toml", "lower = [0, 3]\nupper = [1, 2]\n", "element 1 has lower 3 above upper 2"),
        ("r.toml", "lower = [0, 3]\n", "has the keys lower"),
        ("r.toml", "lower = [0, nan]\nupper = 1\n", "nan.*no float32"),
        ("r.toml", "lower = [0, 1e-999999999]\nupper = 1\n", "no float32"),
        ("r.toml", "lower = [0, 1e39]\nupper = 1\n", "no float32"),
        ("r.toml", "lower = [true, 'x']\nupper = 1\n", "no float32"),
        ("r.toml", "lower = = 3", "no TOML"),
        ("r.csv", "a,b\n1,2\n3,4\n", "no float32"),
        ("r.txt", "", "is no region"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    with pytest.raises(PropertyError, match=message):
        read_box(write(tmp_path, name, text), 2, 1)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PropertyError, match="cannot be read"):
        read_box(tmp_path / "none.toml", 2, 1)


def test_several_boxes_are_refused(tmp_path):
    text = "".join(f"(declare-const {name} Real)" for name in ("X_0", "Y_0"))
    text += "(assert (or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 4) (<= X_0 5))))"
    text += "(assert (<= Y_0 0))"
    with pytest.raises(PropertyError, match="2 boxes"):
        read_box(write(tmp_path, "r.vnnlib", text), 1, 1)
