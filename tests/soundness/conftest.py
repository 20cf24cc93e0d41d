"""Small networks and properties in files, and the verifier on them."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from lrai.verifier.instance import Instance, solve


class Bench:
    """Writes models and properties, decides them, and has certificates checked."""

    def __init__(self, folder):
        self.folder = folder

    def model(self, nodes, constants, shape, name="model"):
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(one), key) for key, one in constants.items()],
        )
        path = self.folder / f"{name}.onnx"
        save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
            path,
        )
        return path

    def dense(self, layers, kind="Relu", name="model"):
        """A network of `(weights (n_in, n_out), bias)` layers."""
        nodes, constants, value = [], {}, "x"
        for index, (weights, bias) in enumerate(layers):
            constants[f"w{index}"] = np.asarray(weights, np.float32)
            constants[f"b{index}"] = np.asarray(bias, np.float32)
            is_last = index == len(layers) - 1
            out = "y" if is_last else f"s{index}"
            nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], [out]))
            value = f"h{index}"
            if not is_last:
                nodes.append(helper.make_node(kind, [out], [value]))
        return self.model(nodes, constants, [1, len(layers[0][0])], name)

    def property(self, text, lower, upper, outputs, name="property"):
        """A property in a box; `text` says what else is unsafe."""
        lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
        lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
        for index, (low, high) in enumerate(zip(lower, upper, strict=True)):
            lines += [
                f"(assert (>= X_{index} {float(low)!r}))",
                f"(assert (<= X_{index} {float(high)!r}))",
            ]
        path = self.folder / f"{name}.vnnlib"
        path.write_text("\n".join([*lines, f"(assert {text})"]))
        return path

    def decide(self, model, subject, arithmetic="float32", seconds=60.0):
        return solve(Instance((model,), subject, seconds), arithmetic)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def module_bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))
