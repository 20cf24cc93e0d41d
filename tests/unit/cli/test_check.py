"""`lrai check`: its words and its exit codes."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from lrai.cli.main import main
from lrai.verifier.instance import Instance, solve

PROPERTY = """(declare-const X_0 Real) (declare-const Y_0 Real)
(assert (>= X_0 -1.0)) (assert (<= X_0 1.0)) (assert (>= Y_0 2.5))"""


@pytest.fixture
def files(tmp_path):
    """A certificate, its model y = 2 relu(x), and its property."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.full((1, 1), 2, np.float32), "w")],
    )
    model, subject, proof = (tmp_path / name for name in ("m.onnx", "p.vnnlib", "m.lrai-proof"))
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    subject.write_text(PROPERTY)
    verdict = solve(Instance((model,), subject, 10.0))
    assert verdict.certificate is not None
    verdict.certificate.write(proof)
    return str(proof), str(model), str(subject)


def test_a_certificate_is_accepted_in_words(files, capsys):
    assert main(["check", *files]) == 0
    assert capsys.readouterr().out.startswith("accepted: proved again under float32 arithmetic")


def test_z3_proves_leaves_as_well_where_it_is_asked(files, capsys):
    assert main(["check", *files, "--exact", "1"]) == 0
    assert "1 of them by Z3 as well" in capsys.readouterr().out


def test_json_tells_all_that_is_known(files, capsys):
    assert main(["check", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accepted"] is True
    assert set(found) == {"accepted", "reason", "leaves", "seconds", "exact", "translated"}


def test_another_property_is_refused_with_code_1(files, tmp_path, capsys):
    other = tmp_path / "other.vnnlib"
    other.write_text(PROPERTY.replace("2.5", "2.6"))
    assert main(["check", *files[:2], str(other)]) == 1
    assert "refused: the certificate is about another property" in capsys.readouterr().out


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_file_is_wrong_usage(files, missing, capsys):
    given = [f"{path}.gone" if place == missing else path for place, path in enumerate(files)]
    assert main(["check", *given]) == 3
    assert "gone cannot be read" in capsys.readouterr().err


def test_a_certificate_alone_is_wrong_usage(files, capsys):
    assert main(["check", *files[:2]]) == 3
    assert "hint: lrai check" in capsys.readouterr().err
