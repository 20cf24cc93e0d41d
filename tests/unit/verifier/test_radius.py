"""A certified radius is what the geometry says, and no attack succeeds inside of it."""

from xml.etree import ElementTree as ET

import numpy as np
import pytest

from lrai.errors import InvalidInputError
from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.relu import Relu
from lrai.verifier.radius import RadiusSettings, certified_radii, draw

SETTINGS = RadiusSettings(greatest=1.0, halvings=20)


def network(*weights):
    """Affine maps with a Relu between each two."""
    size = len(weights[0])
    nodes = [Node("x", None, (), (size,))]
    for number, matrix in enumerate(weights):
        if number:
            nodes.append(Node("relu", Relu(), (len(nodes) - 1,), nodes[-1].shape))
        matrix = np.array(matrix, float)
        shape = (matrix.shape[1],)
        operator = Affine((matrix,), np.zeros(shape))
        nodes.append(Node("affine", operator, (len(nodes) - 1,), shape))
    return Network(tuple(nodes), (0,), (len(nodes) - 1,), ("",))


def small_mlp():
    random = np.random.default_rng(0)
    return network(*(random.normal(size=shape) for shape in ((4, 16), (16, 16), (16, 3))))


def test_radius_of_a_linear_classifier_is_its_distance_to_the_boundary():
    # The margin is x_0 - x_1: it changes by 2 r in a ball of radius r.
    x = np.array([[0.5, 0.1], [0.1, 0.5], [0.9, 0.0]])
    found = certified_radii(network(np.eye(2)), x, np.array([0, 1, 0]), SETTINGS)
    assert found.certified == pytest.approx([0.2, 0.2, 0.45], abs=2e-6)
    assert (found.certified <= [0.2, 0.2, 0.45]).all()


def test_misclassified_rows_have_no_radius():
    x = np.array([[0.5, 0.1], [0.5, 0.1]])
    found = certified_radii(network(np.eye(2)), x, np.array([0, 1]), SETTINGS)
    assert found.correct.tolist() == [True, False]
    assert found.certified[1] == 0
    assert (found.share(0.0), found.share(0.1), found.share(0.3)) == (0.5, 0.5, 0)


def test_a_ball_cut_to_the_domain_allows_a_larger_radius():
    settings = RadiusSettings(greatest=1.0, halvings=20, least_value=0.0, greatest_value=1.0)
    model, x = network([[2, 0], [0, 1]]), np.array([[0.9, 0.9]])
    free = certified_radii(model, x, np.array([0]), SETTINGS)
    cut = certified_radii(model, x, np.array([0]), settings)
    assert free.certified == pytest.approx([0.3], abs=2e-6)  # 2 (0.9 - r) = 0.9 + r
    assert cut.certified == pytest.approx([0.4], abs=2e-6)  # 2 (0.9 - r) = 1


def test_no_sample_within_the_radius_changes_the_class():
    model = small_mlp()
    random = np.random.default_rng(1)
    x = random.normal(size=(40, 4))
    labels = model.evaluate(x).argmax(axis=1)
    found = certified_radii(model, x, labels, SETTINGS)
    assert (found.certified > 0).mean() > 0.9
    for _ in range(200):
        moved = x + found.certified[:, None] * np.sign(random.normal(size=x.shape))
        assert (model.evaluate(moved).argmax(axis=1) == labels).all()


def test_the_greatest_radius_ends_the_search():
    found = certified_radii(
        network(np.eye(2)), np.array([[9.0, 0.0]]), np.array([0]), RadiusSettings(greatest=0.25)
    )
    assert found.certified.tolist() == [0.25]


def test_picture_falls_from_the_accuracy_to_zero():
    model = small_mlp()
    x = np.random.default_rng(2).normal(size=(20, 4))
    labels = model.evaluate(x).argmax(axis=1)
    picture = ET.fromstring(draw(certified_radii(model, x, labels, SETTINGS)))
    (line,) = picture.iter("{http://www.w3.org/2000/svg}polyline")
    heights = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]


@pytest.mark.parametrize(
    ("x", "labels", "settings"),
    [
        (np.zeros((1, 3)), np.zeros(1, int), SETTINGS),
        (np.zeros((2, 2)), np.zeros(1, int), SETTINGS),
        (np.zeros((0, 2)), np.zeros(0, int), SETTINGS),
        (np.zeros((1, 2)), np.full(1, 2), SETTINGS),
        (np.zeros((1, 2)), np.full(1, -1), SETTINGS),
        (np.zeros((1, 2)), np.zeros(1, int), RadiusSettings(greatest=0.0)),
        (np.zeros((1, 2)), np.zeros(1, int), RadiusSettings(halvings=99)),
    ],
)
def test_what_does_not_fit_is_refused(x, labels, settings):
    with pytest.raises(InvalidInputError, match="hint: "):
        certified_radii(network(np.eye(2)), x, labels, settings)
