"""Proves a certificate again: its trees cover the property, and each of their leaves is closed."""

import hashlib
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrai.verifier.checker.bounds import Bounds
from lrai.verifier.checker.graph import ONE, Graph, RefusedError, Slots
from lrai.verifier.checker.leaves import Archive, Leaves, Tree
from lrai.verifier.checker.model import read_models
from lrai.verifier.checker.vnnlib import Query, unpack


@dataclass(frozen=True)
class CheckResult:
    """What became of a check."""

    accepted: bool
    reason: str
    """Why it was refused, or what was proved."""
    leaves: int = 0
    """Leaves that were proved."""
    seconds: float = 0.0
    exact: int = 0
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
    found = list[CheckResult]()
    reason = _refusal(lambda: found.append(_prove(content, unpack(text), rest, exact)))
    seconds = time.perf_counter() - started
    return replace(
        found[0] if found else CheckResult(accepted=False, reason=reason), seconds=seconds
    )


def refusal(models: Sequence[str | Path]) -> str:
    """Why no certificate about these models could be checked; empty where one could."""
    contents = [Path(path).read_bytes() for path in models]
    return _refusal(lambda: read_models(contents, np.zeros(0, np.intp)))


def _refusal(run: Callable[[], object]) -> str:
    """What a step raises, in a sentence."""
    try:
        with np.errstate(all="ignore"):
            run()
    except Exception as error:  # noqa: BLE001 - whatever a hostile file causes, it proves nothing
        known = isinstance(error, RefusedError)
        return str(error) if known else f"the files cannot be made sense of: {error!r}"
    return ""


def _prove(content: bytes, text: bytes, models: list[bytes], wanted: int) -> CheckResult:
    """What is proved; raises what shows that nothing is."""
    archive, query = Archive(content), Query(text.decode("utf-8", "replace"))
    header, digests = archive.header, [hashlib.sha256(one).hexdigest() for one in models]
    is_each = set(query.models) == set(range(len(models)))
    if not is_each or header["models"] != [digests[model] for model in query.models]:
        raise RefusedError("the certificate is about another model")
    if header["property"] != hashlib.sha256(text).hexdigest():
        raise RefusedError("the certificate is about another property")
    shared = np.unique(header["inputs"], return_inverse=True)[1]
    graph, outputs = read_models([models[model] for model in query.models], shared)
    is_float32 = {"real": False, "float32": True}[header["arithmetic"]]
    trees = [archive.tree(index, graph, outputs.size) for index in range(header["trees"])]
    if query.left_out(shared, outputs.size, trees):
        raise RefusedError("a part of the property may be left out")
    count, closed = 0, 0
    for tree in trees:
        bounds = Bounds(_with_conditions(graph, outputs, tree), is_float32, tree["slopes"])
        leaves = Leaves(tree, bounds)
        closed += leaves.prove(wanted - closed)
        count += len(leaves.all)
    sentence = f"proved again under {header['arithmetic']} arithmetic"
    return CheckResult(accepted=True, reason=sentence, leaves=count, exact=closed)


def _with_conditions(graph: Graph, outputs: Slots, tree: Tree) -> Graph:
    """The graph with one more sum: by how much each condition of a tree is missed."""
    whole = copy(graph)
    whole.operations = [*graph.operations]
    slots = np.concatenate([outputs, ONE + 1 + np.arange(graph.inputs), [ONE]])
    weights = np.column_stack([tree["rows"], -tree["offset"]])
    rows, places = np.indices(weights.shape)
    whole.linear((rows, slots[places], weights), tree["claim"].shape)
    return whole
