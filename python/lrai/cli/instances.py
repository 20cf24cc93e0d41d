"""`lrai verify --instances`: a list of instances, a line for each, a table at the end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from lrai.cli.table import print_table
from lrai.verifier.instances import RunSettings, run
from lrai.verifier.outcomes import Outcome


def run_list(path: Path, results: Path | None, settings: RunSettings, as_json: bool) -> int:
    """Run what the results file does not hold yet and print a summary; returns the exit code."""
    if results is None:
        results = Path(f"{path.stem}.results.jsonl")
    told: Callable[[Outcome, int, int], None] | None = None
    if not as_json:
        print(f"results: {results}", file=sys.stderr)
        told = _tell
    outcomes = run(path, results, settings, told)
    summary = _summary(outcomes)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        rows = [(name, cast("object", value)) for name, value in summary.items()]
        print_table(("what", "value"), rows)
    return 0 if summary["error"] == 0 else 2


def _tell(outcome: Outcome, done: int, total: int) -> None:
    proof = "" if outcome.accepted is None else f"  checked in {outcome.check_seconds:.2f} s"
    if outcome.accepted is False:
        proof = "  CERTIFICATE REFUSED"
    print(
        f"{done:4}/{total}  {outcome.answer:8}{outcome.seconds:8.2f} s  "
        f"{Path(outcome.model).name}  {Path(outcome.subject).name}{proof}"
        f"{f'  ({outcome.reason})' if outcome.reason else ''}",
        flush=True,
    )


def _summary(outcomes: list[Outcome]) -> dict[str, float | int]:
    """What a list came to."""
    answers = [outcome.answer for outcome in outcomes]
    return {
        "instances": len(outcomes),
        "wrong": sum(outcome.is_wrong for outcome in outcomes),
        **{answer: answers.count(answer) for answer in ("unsat", "sat", "unknown", "error")},
        "certificates accepted": sum(outcome.accepted is True for outcome in outcomes),
        "certificates refused": sum(outcome.accepted is False for outcome in outcomes),
        "solving seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "checking seconds": round(sum(outcome.check_seconds for outcome in outcomes), 1),
        "slowest seconds": max((outcome.seconds for outcome in outcomes), default=0.0),
    }
