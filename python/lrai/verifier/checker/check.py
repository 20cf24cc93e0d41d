"""Proves a certificate again: its trees cover the property, and each of their leaves is closed."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from lrai.verifier.checker import exact as z3_leaf
from lrai.verifier.checker.bounds import Bounds
from lrai.verifier.checker.certificate import Archive, Tree
from lrai.verifier.checker.graph import Graph, RefusedError, Relu, Sum
from lrai.verifier.checker.leaves import Leaf, close, look, replay
from lrai.verifier.checker.model import read_models
from lrai.verifier.checker.vnnlib import Region, read_query, unpack

_MAX_ROUNDS: Final = 12
_MAX_HALVES: Final = 4
"""Halves for each leaf of a tree, beyond a thousand."""


@dataclass(frozen=True)
class CheckResult:
    """What became of a check."""

    accepted: bool
    reason: str
    """Why it was refused, or what was proved."""
    leaves: int
    """Leaves that were looked at."""
    seconds: float
    exact: int
    """Leaves that Z3 has closed."""


def check(
    certificate: str | Path, models: Sequence[str | Path], subject: str | Path, exact: int = 0
) -> CheckResult:
    """Prove again that models have the property in the file `subject`.

    Z3 closes `exact` leaves, taken at random, once more. Raises OSError where a file cannot be
    read; whatever else is wrong is a refusal.
    """
    started = time.perf_counter()
    content, text, *rest = [Path(path).read_bytes() for path in (certificate, subject, *models)]
    run = _Run(exact)
    try:
        with np.errstate(all="ignore"):
            accepted, reason = True, run.check(content, text, rest)
    except RefusedError as error:
        accepted, reason = False, str(error)
    except Exception as error:  # noqa: BLE001 - whatever a hostile file causes, it proves nothing
        accepted, reason = False, f"the files cannot be made sense of: {error!r}"
    return CheckResult(accepted, reason, run.leaves, time.perf_counter() - started, run.exact)


def refusal(models: Sequence[str | Path]) -> str:
    """Why no certificate about these models could be checked; empty where one could."""
    try:
        with np.errstate(all="ignore"):
            read_models([Path(path).read_bytes() for path in models])
    except RefusedError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - what cannot be read cannot be checked
        return f"the model cannot be made sense of: {error!r}"
    return ""


class _Run:
    """One check, and how far it went."""

    def __init__(self, wanted: int) -> None:
        self.leaves, self.exact, self._wanted = 0, 0, wanted

    def check(self, content: bytes, subject: bytes, models: Sequence[bytes]) -> str:
        archive = Archive(content)
        header, text = archive.header, unpack(subject)
        query = read_query(text.decode("utf-8", "replace"))
        digests = [hashlib.sha256(one).hexdigest() for one in models]
        is_each = set(query.models) == set(range(len(models)))
        if not is_each or header["models"] != [digests[model] for model in query.models]:
            raise RefusedError("the certificate is about another model")
        if header["property"] != hashlib.sha256(text).hexdigest():
            raise RefusedError("the certificate is about another property")
        is_float32 = header["arithmetic"] == "float32"
        graph = read_models([models[model] for model in query.models])
        if query.shared is not None:
            graph = _share(graph, query.shared)
        inputs, outputs = graph.inputs.size, graph.outputs.size
        hidden = sum(x.inputs.size for x in graph.operations if isinstance(x, Relu) and x.is_hidden)
        left = query.regions(inputs, outputs)
        for index in range(header["trees"]):
            tree = archive.tree(index, inputs, outputs, hidden)
            self._prove(tree, Bounds(_with_claims(graph, tree), is_float32))
            left = [region for region in left if not _covers(tree, region)]
        if left:
            raise RefusedError(f"{len(left)} cases of the property are left out")
        return f"proved again under {header['arithmetic']} arithmetic"

    def _prove(self, tree: Tree, bounds: Bounds) -> None:
        leaves = replay(tree, bounds.hidden_inputs.size)
        rest = [leaf for leaf in leaves if not tree.exact[leaf.origin]]
        for leaf in leaves:
            if tree.exact[leaf.origin] and _ask(tree, bounds, leaf) != "unsat":
                raise RefusedError(f"Z3 does not close leaf {leaf.origin} of a tree")
        for place in np.random.default_rng().permutation(len(rest))[: self._wanted - self.exact]:
            answer = _ask(tree, bounds, rest[place])
            if answer == "sat":
                raise RefusedError(f"Z3 contradicts leaf {rest[place].origin} of a tree")
            self.exact += answer == "unsat"
        self.leaves += len(leaves)
        budget = 1000 + _MAX_HALVES * len(rest)
        for _ in range(_MAX_ROUNDS):
            rest = close(tree, bounds, rest)
            budget -= len(rest)
            if not rest or budget < 0:
                break
        if rest:
            raise RefusedError(f"the bound does not close leaf {rest[0].origin} of a tree")


def _share(graph: Graph, shared: list[int]) -> Graph:
    """The graph with one slot for inputs that have one number."""
    if len(shared) != graph.inputs.size:
        raise RefusedError("the property has another number of inputs than the models")
    place, first = np.arange(graph.slots), np.unique(shared, return_index=True)[1]
    inputs = graph.inputs[first]
    place[graph.inputs] = inputs[shared]
    operations = [replace(one, inputs=place[one.inputs]) for one in graph.operations]
    return replace(graph, operations=tuple(operations), inputs=inputs, outputs=place[graph.outputs])


def _with_claims(graph: Graph, tree: Tree) -> Graph:
    """The graph with one more sum: by how much each condition of a tree is missed."""
    inputs = np.concatenate([graph.outputs, graph.inputs])[None]
    shift = -tree.offset[None]
    place = slice(graph.slots, graph.slots + shift.size)
    last = Sum(place, inputs, tree.rows.T[None], shift, np.abs(shift), 0)
    return replace(graph, operations=(*graph.operations, last), slots=graph.slots + shift.size)


def _covers(tree: Tree, region: Region) -> bool:
    """Whether a region lies in the box and fulfils all conditions of a claim, hence none of it is
    unsafe when the tree is right.
    """
    if (tree.lower > region.lower).any() or (tree.upper < region.upper).any():
        return False
    has = []
    for row, offset in zip(tree.rows, tree.offset, strict=True):
        key = tuple((int(place), float(row[place])) for place in np.flatnonzero(row))
        has.append(region.conditions.get(key, np.inf) <= offset)
    return any(np.array(has)[tree.claim == claim].all() for claim in np.unique(tree.claim))


def _ask(tree: Tree, bounds: Bounds, leaf: Leaf) -> str:
    conditions = np.arange(bounds.graph.slots)[-tree.offset.size :]
    claims = [conditions[tree.claim == claim] for claim in np.unique(tree.claim)]
    fixed = {int(bounds.hidden_inputs[max(one, -1 - one)]): one >= 0 for one in leaf.fixed}
    return z3_leaf.ask(bounds.graph, look(tree, bounds, [leaf]), fixed, claims)
