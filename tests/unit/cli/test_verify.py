"""`lrai verify` and `lrai radius`: words, exit codes, and the files that they leave."""

import json
import re

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from lrai.cli.main import main
from lrai.verifier.guard import read_guard

SAFE = """(declare-const X_0 Real) (declare-const Y_0 Real)
(assert (>= X_0 -1.0)) (assert (<= X_0 1.0)) (assert (>= Y_0 2.5))"""
UNSAFE = SAFE.replace("2.5", "1.5")
# Above the largest output, by less than float32 may round it.
TIGHT = SAFE.replace("2.5", "2.0000001")


@pytest.fixture
def folder(tmp_path):
    """y = 2 relu(x), a copy that is a little off, and properties."""
    for name, weight in (("m", 2.0), ("near", 2.001)):
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
            [numpy_helper.from_array(np.full((1, 1), weight, np.float32), "w")],
        )
        opsets = [helper.make_opsetid("", 17)]
        save(
            helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / f"{name}.onnx"
        )
    for name, text in (("safe", SAFE), ("unsafe", UNSAFE), ("tight", TIGHT)):
        (tmp_path / f"{name}.vnnlib").write_text(text)
    (tmp_path / "region.toml").write_text("lower = -1\nupper = 1\n")
    return tmp_path


def verify(folder, *arguments):
    """Names of files are in the folder."""
    is_file = re.compile(r"[a-z]\w*\.[a-z]+").fullmatch
    return main(["verify", *(str(folder / a) if is_file(a) else a for a in arguments)])


def test_a_property_that_holds_is_proved_and_leaves_its_proof(folder, capsys):
    files = ("--certificate", "c.proof", "--guard", "guard.json", "--html", "page.html")
    assert verify(folder, "m.onnx", "safe.vnnlib", *files) == 0
    assert capsys.readouterr().out.startswith("unsat: safe for every input in the region: proved")
    assert main(["check", *(str(folder / n) for n in ("c.proof", "m.onnx", "safe.vnnlib"))]) == 0
    guard = read_guard(folder / "guard.json")
    assert guard.covers(np.array([[0.5], [1.5]], np.float32)).tolist() == [True, False]
    page = (folder / "page.html").read_text()
    assert "Safe: the property holds" in page
    assert "lrai check" in page


def test_a_proof_of_a_property_in_toml_is_checked_as_it_was_asked(folder, capsys):
    for name, greatest in (("range", 2.5), ("other", 2.6)):
        holds = f"holds = {{output = 0, least = -1, greatest = {greatest}}}"
        (folder / f"{name}.toml").write_text(f"lower = -1\nupper = 1\n{holds}\n")
    assert verify(folder, "m.onnx", "range.toml", "--certificate", "c.proof") == 0
    check = ["check", str(folder / "c.proof"), str(folder / "m.onnx")]
    assert main([*check, str(folder / "range.toml"), "--vnnlib", str(folder / "t.vnnlib")]) == 0
    assert "written from range.toml as verify does" in capsys.readouterr().out
    assert main([*check, str(folder / "t.vnnlib")]) == 0
    assert main([*check, str(folder / "other.toml")]) == 1
    assert "another property" in capsys.readouterr().out
    assert main([*check, str(folder / "nowhere.toml")]) == 3


def test_a_property_that_fails_is_shown_by_an_input(folder, capsys):
    assert verify(folder, "m.onnx", "unsafe.vnnlib", "--witness", "w.txt", "--html", "p.html") == 1
    assert capsys.readouterr().out.startswith("sat: unsafe, this input shows it")
    first, *rest = (folder / "w.txt").read_text().splitlines()
    assert first == "sat"
    values = dict(line.strip(" ()").split(" ") for line in rest)
    assert float(values["Y_0"]) == 2 * float(values["X_0"]) >= 1.5
    assert "Unsafe: this input breaks" in (folder / "p.html").read_text()


def test_a_margin_that_float32_cannot_keep_is_unknown_and_says_why(folder, capsys):
    assert verify(folder, "m.onnx", "tight.vnnlib", "--timeout", "3") == 2
    said = capsys.readouterr().out
    assert said.startswith("unknown:")
    assert "over the real numbers" in said


def test_json_has_the_witness(folder, capsys):
    assert verify(folder, "m.onnx", "unsafe.vnnlib", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] == "sat"
    assert found["witness"]["y"][0] == 2 * found["witness"]["x"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("m.onnx",),
        ("nowhere.onnx", "safe.vnnlib"),
        ("m.onnx", "region.toml"),
        ("m.onnx", "safe.vnnlib", "--guard", "g.json"),
        ("m.onnx", "safe.vnnlib", "--no-such-option"),
        ("m.onnx", "--against", "near.onnx"),
        ("m.onnx", "m.onnx", "safe.vnnlib"),
    ],
)
def test_what_cannot_be_asked_is_3(folder, arguments, capsys):
    assert verify(folder, *arguments) == 3
    assert capsys.readouterr().err


def test_a_list_is_run_once_and_goes_on_where_it_stopped(folder, capsys):
    (folder / "list.csv").write_text("m.onnx,safe.vnnlib,20\nm.onnx,unsafe.vnnlib,20\n")
    options = ("--instances", "list.csv", "--results", "r.jsonl", "--certificates", "d.proofs")
    assert verify(folder, *options, "--check") == 0
    lines = (folder / "r.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["unsat", "sat"]
    assert json.loads(lines[0])["accepted"] is True
    assert "certificates accepted" in capsys.readouterr().out
    (folder / "r.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    assert verify(folder, *options, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["unsat"], summary["sat"], summary["error"]) == (1, 1, 0)


def test_a_close_variant_is_proved_and_a_far_one_refuted(folder, capsys):
    near = ("near.onnx", "--against", "m.onnx", "--region", "region.toml")
    assert verify(folder, *near, "--epsilon", "0.01", "--certificate", "c.proof") == 0
    said = capsys.readouterr()
    assert said.out.startswith("PROVED")
    proof = [str(folder / name) for name in ("c.proof", "m.onnx", "near.onnx", "c.vnnlib")]
    assert main(["check", *proof]) == 0
    assert verify(folder, *near, "--epsilon", "0.0001") == 1
    assert "REFUTED" in capsys.readouterr().out


def test_cases_are_statistics_and_never_a_proof(folder, capsys):
    near = ("near.onnx", "--against", "m.onnx", "--region", "region.toml")
    assert verify(folder, *near, "--epsilon", "0.01", "--cases", "2000") == 2
    assert "statistical, no proof: of 2000 cases 0 differ" in capsys.readouterr().out
    assert verify(folder, *near, "--epsilon", "0.0001", "--cases", "2000") == 1


def test_radii_of_labelled_rows(folder, capsys):
    weights = np.array([[1, -1]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "sign.onnx")
    (folder / "rows.csv").write_text("0.25,0\n-0.125,1\n")
    model, rows, plot = (str(folder / name) for name in ("sign.onnx", "rows.csv", "p.svg"))
    assert main(["radius", model, rows, "--plot", plot, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["certified"] == pytest.approx([0.25, 0.125], abs=1e-3)
    assert "<svg" in (folder / "p.svg").read_text()
    assert main(["radius", model, str(folder / "nothing.csv")]) == 2
