"""What became of the instances of a list: a line of JSON for each."""

import csv
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from lrai.errors import ConfigError

DECIDED: Final = ("unsat", "sat")


@dataclass(frozen=True)
class Outcome:
    """A line of the results."""

    model: str
    subject: str
    """As the list names them."""
    answer: str
    """`unsat`, `sat`, `unknown`, or `error`."""
    seconds: float = 0.0
    """That passed, with reading and writing the certificate."""
    cpu_seconds: float = 0.0
    """The same on a processor."""
    limit_s: float = 0.0
    """What it was allowed, by the clock of the run."""
    boxes: int = 0
    bound: float | None = None
    reason: str = ""
    leaves: int = 0
    accepted: bool | None = None
    """What the checker said of the certificate; None where there is none or nobody asked."""
    check_seconds: float = 0.0
    check_cpu_seconds: float = 0.0
    certificate_bytes: int = 0
    expected: str = ""
    """The answer that is known, where there is one."""

    @property
    def is_wrong(self) -> bool:
        """Whether it contradicts what is known."""
        return bool(self.expected) and self.answer in DECIDED and self.answer != self.expected

    @property
    def key(self) -> tuple[str, str]:
        """What tells instances apart."""
        return self.model, self.subject


def read_results(path: Path) -> dict[tuple[str, str], Outcome]:
    """The last outcome of each instance that a results file holds, a decision before all others.

    A last line that was cut off does not count.
    """
    found: dict[tuple[str, str], Outcome] = {}
    known = {one.name for one in fields(Outcome)}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            outcome = Outcome(**{name: row[name] for name in known & row.keys()})
        except (ValueError, TypeError, AttributeError):
            continue
        before = found.get(outcome.key)
        if before is None or before.answer not in DECIDED or outcome.answer in DECIDED:
            found[outcome.key] = outcome
    return found


def read_expected(path: Path | None) -> dict[tuple[str, str], str]:
    """The known answers of a list, under the names that it uses. Raises ConfigError."""
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
            return {(row["network"], row["property"]): row["answer"] for row in rows}
    except (OSError, UnicodeDecodeError, KeyError) as error:
        message = f"cannot read the answers {path}: {error}"
        raise ConfigError(message, "the first line is network,property,answer") from None
