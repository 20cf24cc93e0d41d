"""Reads properties in VNN-LIB 2.0: tensors of one network, or of several that are compared."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrai.errors import PropertyError
from lrai.verifier.formula import (
    Formula,
    Linear,
    comparison,
    conjunction,
    disjunction,
    make_cases,
    product,
)
from lrai.verifier.network import Network
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.product_network import join
from lrai.verifier.property import Property
from lrai.verifier.replay import Part
from lrai.verifier.vnnlib import NUMBER, expressions, read_text

if TYPE_CHECKING:
    import vnnlib

_SIGNS = {
    "LessEqual": "<=",
    "GreaterEqual": ">=",
    "LessThan": "<",
    "GreaterThan": ">",
    "Equal": "==",
    "NotEqual": "!=",
}


def read_vnnlib2(
    path: str | Path, models: Sequence[Path]
) -> tuple[Network, Property, tuple[Part, ...]]:
    """Read a file about these models, in the order of its networks without `equal-to`.

    Input elements that the file asserts to be equal become one input of the returned network; its
    outputs are those of all networks, side by side. Raises PropertyError, or VerifierError for a
    model that cannot be read.
    """
    text = read_text(path)
    try:
        return parse_vnnlib2(text, models)
    except PropertyError as error:
        raise PropertyError(f"{path}: {error.message}", error.hint) from None


def parse_vnnlib2(text: str, models: Sequence[Path]) -> tuple[Network, Property, tuple[Part, ...]]:
    """Read a property from its text; see read_vnnlib2."""
    return _Query(text, models).read()


@dataclass(frozen=True)
class _Tensor:
    """The elements of a declared tensor in the flat vector of all networks' inputs or outputs."""

    kind: str
    start: int
    shape: tuple[int, ...]


class _Query:
    def __init__(self, text: str, models: Sequence[Path]) -> None:
        self._text, self._models = text, models
        self._tensors: dict[str, _Tensor] = {}
        self._starts = {"X": 0, "Y": 0}
        self._shared: NDArray[np.intp] = np.empty(0, np.intp)

    def read(self) -> tuple[Network, Property, tuple[Part, ...]]:
        query = _parse(self._text)
        paths = self._assign(query.networks)
        networks = [read_onnx(path) for path in paths]
        for declared, path, network in zip(query.networks, paths, networks, strict=True):
            self._declare(declared, path, network)
        self._check_isomorphic(query.networks, networks)
        self._share(query.assertions)
        formula = conjunction([self._formula(item.expr) for item in query.assertions])
        sizes = np.cumsum([network.input_size for network in networks])[:-1]
        feeds = np.split(self._shared, sizes)
        network = join(networks, feeds)
        cases = make_cases(formula, network.input_size, network.output_size)
        digest = hashlib.sha256(self._text.encode()).hexdigest()
        parts = tuple(Part(path, feed) for path, feed in zip(paths, feeds, strict=True))
        return network, Property(tuple(cases), digest, self._text), parts

    def _assign(self, networks: Sequence["vnnlib.Network"]) -> list[Path]:
        own = [network.name for network in networks if not network.equal_to]
        if len(own) != len(self._models):
            raise PropertyError(
                f"it declares {len(own)} networks ({', '.join(own)}), "
                f"{len(self._models)} models are given.",
                "give one model per network, without those that are equal-to another",
            )
        found = dict(zip(own, self._models, strict=True))
        for network in networks:
            if network.equal_to:
                found[network.name] = found[network.equal_to]
        return [found[network.name] for network in networks]

    def _declare(self, declared: "vnnlib.Network", path: Path, network: Network) -> None:
        import onnx

        if declared.hidden:
            raise PropertyError(
                f"the network {declared.name} declares hidden tensors.",
                "state the property over inputs and outputs",
            )
        graph = onnx.load(path, load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [item.name for item in graph.input if item.name not in weights]
        outputs = [item.name for item in graph.output]
        self._place("X", declared.inputs, inputs, network.sizes(network.inputs))
        self._place("Y", declared.outputs, outputs, network.sizes(network.outputs))

    def _place(
        self, kind: str, declared: Sequence[Any], names: list[str], sizes: list[int]
    ) -> None:
        ends = np.cumsum([self._starts[kind], *sizes]).tolist()
        if len(declared) != len(sizes):
            what = "inputs" if kind == "X" else "outputs"
            raise PropertyError(
                f"it declares {len(declared)} {what} of a network, the model has {len(sizes)}.",
                "check the order of the models",
            )
        for position, item in enumerate(declared):
            name = item.onnx_name
            if name is not None and name not in names:
                raise PropertyError(
                    f"the model has no tensor {name!r}.", f"it has {', '.join(names)}"
                )
            place = position if name is None else names.index(name)
            if math.prod(item.shape) != sizes[place]:
                raise PropertyError(
                    f"{item.name} has the shape {list(item.shape)}, the model's tensor has "
                    f"{sizes[place]} elements.",
                    "check the order of the models, and their shapes",
                )
            self._tensors[item.name] = _Tensor(kind, ends[place], tuple(item.shape))
        self._starts[kind] = ends[-1]

    def _check_isomorphic(
        self, declared: Sequence["vnnlib.Network"], networks: Sequence[Network]
    ) -> None:
        shapes = {
            item.name: [(type(node.operator), node.inputs, node.shape) for node in network.nodes]
            for item, network in zip(declared, networks, strict=True)
        }
        for item in declared:
            if item.isometric_to and shapes[item.name] != shapes[item.isometric_to]:
                raise PropertyError(
                    f"the models of {item.name} and {item.isometric_to} differ in more than "
                    "weights.",
                    "give models of one architecture, or leave isomorphic-to out",
                )

    def _share(self, assertions: Sequence["vnnlib.Assertion"]) -> None:
        """Make one input of the elements that are equal in every case."""
        parents = list(range(self._starts["X"]))

        def root(index: int) -> int:
            while parents[index] != index:
                parents[index] = parents[parents[index]]
                index = parents[index]
            return index

        for left, right in _equal_variables([item.expr for item in assertions]):
            sides = sorted(root(self._element(side)[1]) for side in (left, right))
            if self._tensors[left.name].kind == self._tensors[right.name].kind == "X":
                parents[sides[1]] = sides[0]
        roots = [root(index) for index in range(len(parents))]
        _, self._shared = np.unique(roots, return_inverse=True)

    def _formula(self, expression: Any) -> Formula:
        kind = type(expression).__name__
        if kind == "And":
            return conjunction([self._formula(part) for part in expression.args])
        if kind == "Or":
            return disjunction([self._formula(part) for part in expression.args])
        sign = _SIGNS[kind]
        return comparison(sign, self._linear(expression.lhs), self._linear(expression.rhs))

    def _linear(self, expression: Any) -> Linear:
        kind = type(expression).__name__
        if kind == "Var":
            variable, index = self._element(expression)
            index = int(self._shared[index]) if variable == "X" else index
            return Linear({(variable, index): Fraction(1)}, Fraction(0))
        if kind == "Negate":
            return self._linear(expression.expr).times(Fraction(-1))
        if kind == "Minus":
            rest = [self._linear(part) for part in expression.rest]
            return self._linear(expression.head).plus(rest, -1)
        if kind in ("Plus", "Multiply"):
            parts = [self._linear(part) for part in expression.args]
            return product(parts) if kind == "Multiply" else parts[0].plus(parts[1:])
        if NUMBER.fullmatch(expression.lexeme):
            return Linear({}, Fraction(expression.lexeme))
        raise PropertyError(f"cannot read the number {expression.lexeme[:80]}.", "use decimals")

    def _element(self, variable: Any) -> tuple[str, int]:
        tensor = self._tensors[variable.name]
        index = 0
        for place, size in zip(variable.indices, tensor.shape, strict=True):
            index = index * size + place
        return tensor.kind, tensor.start + index


def _equal_variables(parts: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs of variables that are equal in every case of a conjunction."""
    for part in parts:
        kind = type(part).__name__
        if kind == "And":
            yield from _equal_variables(part.args)
        elif kind == "Equal" and {type(s).__name__ for s in (part.lhs, part.rhs)} == {"Var"}:
            yield part.lhs, part.rhs


def _parse(text: str) -> "vnnlib.Query":
    import vnnlib

    for _ in expressions(text):  # bounds the depth before the library's own recursion
        pass
    try:
        return vnnlib.parse_query_string(text)
    except Exception as error:  # the library has its own kind, and lets those of C++ through
        raise PropertyError(
            f"it is no VNN-LIB 2.0: {_reason(str(error))}.", "see the standard's grammar"
        ) from error


def _reason(message: str) -> str:
    try:
        first = json.loads(message)["errors"][0]
        return f"{first['message']} {first['offendingSymbol']}, line {first['line']}"
    except (ValueError, LookupError, TypeError):
        return next(iter(message.splitlines()), "no reason given")[:200]
