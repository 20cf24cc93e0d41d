"""A page about a verdict, for people: one HTML file that needs nothing else."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

import numpy as np

from lrai.verifier.certificate import Tree
from lrai.verifier.instance import Instance
from lrai.verifier.property import Case
from lrai.verifier.verdict import Verdict

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
.unsat{color:#2b8a3e}.sat{color:#c92a2a}.unknown{color:#846200}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
td.n{font-variant-numeric:tabular-nums;text-align:right}code{overflow-wrap:anywhere}
"""
_HEADLINE: Final = {
    "unsat": "Safe: the property holds for every input in the region",
    "sat": "Unsafe: this input breaks the property",
    "unknown": "Unknown: neither proved nor refuted",
}
_MOST_ROWS: Final = 64


def page(instance: Instance, verdict: Verdict, arithmetic: str) -> str:
    """The page: verdict, facts, region with the witness in it, shape of the proof."""
    facts = [
        ("model", ", ".join(path.name for path in instance.models)),
        ("property", instance.subject.name),
        ("arithmetic", arithmetic),
        ("time", f"{verdict.seconds:.2f} s of {instance.timeout_s:g} s"),
        ("boxes bounded", f"{verdict.boxes}"),
        ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]
    if np.isfinite(verdict.bound):
        facts.append(("smallest margin", f"{verdict.bound:.6g}"))
    if verdict.reason:
        facts.append(("why", verdict.reason))
    proof = verdict.certificate
    if proof is not None:
        facts += [("SHA-256 of the model", digest) for digest in proof.models]
        facts += [("SHA-256 of the property", proof.subject.digest)]
        facts += [("leaves of the proof", f"{proof.leaves}")]
    parts = [
        f"<h1 class={verdict.answer}>{_HEADLINE[verdict.answer]}</h1>",
        _facts(facts),
    ]
    cases = [case for tree in proof.trees for case in tree.cases[:1]] if proof else []
    if verdict.witness is not None:
        values = verdict.witness
        parts.append("<h2>The input, and what the model answers</h2>")
        parts.append(_values("X", values.x) + _values("Y", values.y))
    parts += [_region(case, number) for number, case in enumerate(cases[:4], start=1)]
    if proof is not None:
        parts += [_depths(tree, number) for number, tree in enumerate(proof.trees[:4], start=1)]
        parts.append("<p>Prove it again: <code>lrai check CERTIFICATE MODEL PROPERTY</code>.</p>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>'
        f"{verdict.answer}: {escape(instance.subject.name)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _facts(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _values(letter: str, values: np.ndarray) -> str:
    cells = "".join(
        f"<tr><td>{letter}<sub>{index}</sub></td><td class=n>{value:.9g}</td></tr>"
        for index, value in enumerate(values[:_MOST_ROWS])
    )
    more = f"<p>{len(values)} in all</p>" if len(values) > _MOST_ROWS else ""
    return f"<table>{cells}</table>{more}"


def _region(case: Case, number: int) -> str:
    """The intervals of a region, drawn on one scale."""
    low, high = float(case.lower.min(initial=0)), float(case.upper.max(initial=0))
    span = max(high - low, 1e-300)
    rows = []
    for index, (lower, upper) in enumerate(
        zip(case.lower[:_MOST_ROWS], case.upper[:_MOST_ROWS], strict=True)
    ):
        left, width = (lower - low) / span * 400, max((upper - lower) / span * 400, 1.5)
        rows.append(
            f"<tr><td>X<sub>{index}</sub></td><td class=n>{lower:.6g}</td>"
            f"<td><svg width=400 height=12><rect x={left:.1f} width={width:.1f} height=12 rx=2 "
            f'fill="#1f6fb4"/></svg></td><td class=n>{upper:.6g}</td></tr>'
        )
    more = f"<p>{len(case.lower)} inputs in all</p>" if len(case.lower) > _MOST_ROWS else ""
    return f"<h2>Region {number}</h2><table>{''.join(rows)}</table>{more}"


def _depths(tree: Tree, number: int) -> str:
    """How many leaves lie at each depth of the tree."""
    counts = np.bincount(_leaf_depths(tree))
    tallest, bar = max(int(counts.max()), 1), 14
    bars = "".join(
        f"<rect x={depth * bar} y={100 - count / tallest * 96:.1f} width={bar - 2} "
        f'height={count / tallest * 96:.1f} fill="#2b8a3e"><title>{count} leaves at depth {depth}'
        "</title></rect>"
        for depth, count in enumerate(counts)
    )
    return (
        f"<h2>Proof of region {number}: {tree.leaves} leaves by depth of splitting</h2>"
        f"<svg width={len(counts) * bar} height=100>{bars}</svg>"
    )


def _leaf_depths(tree: Tree) -> list[int]:
    depths, pending = [], [0]
    for axis in tree.arrays()["axis"].tolist():
        depth = pending.pop()
        if axis == -1:
            depths.append(depth)
        else:
            pending += [depth + 1, depth + 1]
    return depths
