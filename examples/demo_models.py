"""Trains the demo's two models on data that scikit-learn ships, and writes their ONNX files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """A trained model: what to send, and what the model itself answers in this process."""

    name: str
    story: str
    input: str
    output: str
    rows: Rows
    expected: Rows


def train(repository: Path) -> list[Trained]:
    """Train both models into a model repository."""
    return [train_digits(repository), train_cancer(repository)]


def train_digits(repository: Path) -> Trained:
    """A neural network that reads handwritten digits; its ONNX graph is written by hand."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    scaled = (images / 16).astype(np.float32)
    seen, unseen, known, hidden = train_test_split(scaled, labels, random_state=0)
    network = MLPClassifier((64,), max_iter=400, random_state=0).fit(seen, known)
    write_network(repository / "digits/1/model.onnx", network.coefs_, network.intercepts_)
    story = f"MLP 64-64-10, {network.score(unseen, hidden):.1%} of {len(unseen)} unseen digits"
    expected = network.predict_proba(unseen).astype(np.float32)
    return Trained("digits", story, "image", "probabilities", unseen, expected)


def write_network(path: Path, weights: list[Rows], biases: list[Rows]) -> None:
    """Write two dense layers, ReLU between them and softmax behind them, as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {"w1": weights[0], "b1": biases[0], "w2": weights[1], "b2": biases[1]}
    nodes = [
        helper.make_node("Gemm", ["image", "w1", "b1"], ["dense"]),
        helper.make_node("Relu", ["dense"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants.items()],
    )
    path.parent.mkdir(parents=True)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def train_cancer(repository: Path) -> Trained:
    """A scaler and a logistic regression that tell tumours apart, exported by skl2onnx."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = load_breast_cancer(return_X_y=True)
    split = train_test_split(rows.astype(np.float32), labels, random_state=0)
    seen, unseen, known, hidden = split
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(seen, known)
    path = repository / "cancer/1/model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(to_onnx(classifier, seen[:1]).SerializeToString())
    accuracy = classifier.score(unseen, hidden)
    story = f"logistic regression, {accuracy:.1%} of {len(unseen)} unseen tumours"
    expected = classifier.predict_proba(unseen).astype(np.float32)
    return Trained("cancer", story, "X", "output_probability", unseen, expected)
