"""Results as people and programs read them: Markdown and JSON, machine and commands beside them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
_VERDICTS = {True: "yes", False: "**no**", None: "void"}


@dataclass(frozen=True)
class Spread:
    """A number measured several times."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and range."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 0) -> str:
        """Median, and the range if there is one."""
        median = f"{self.median:,.{digits}f}"
        if self.rounds == 1:
            return median
        return f"{median} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Goal:
    """A promise, what was measured, and whether it holds (by the median)."""

    text: str
    measured: str
    holds: bool | None
    """None: void, because the machine itself did not allow it in this run."""


@dataclass(frozen=True)
class Section:
    """One scenario's results."""

    name: str
    """Names the files."""
    title: str
    how: str
    """How it was measured, in sentences."""
    tables: Sequence[Table]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()
    data: object = None
    """Every sample, for the JSON file."""


@dataclass(frozen=True)
class Environment:
    """Where and with what the numbers were made."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    versions: dict[str, str]
    client: str
    commit: str
    date: str
    command: str
    load_average: float
    """Of the minute before the run: other work on the machine shows here."""
    settings: dict[str, object] = field(default_factory=dict)


def environment(client: str, peers: dict[str, str], settings: dict[str, object]) -> Environment:
    """Asks the machine; call it before the first measurement."""
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in ("onnxruntime", "numpy")}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Environment(
        cpu=models[0] if models else platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        versions={**versions, **peers},
        client=client,
        commit=_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=f"python -m benchmarks.serve {' '.join(_public(sys.argv[1:]))}",
        load_average=round(os.getloadavg()[0], 2),
        settings=settings,
    )


def _public(arguments: Sequence[str]) -> list[str]:
    """The arguments without the folders of this machine."""
    return ["DIR" if argument.startswith(("/", "~")) else argument for argument in arguments]


def _commit() -> str:
    """The commit, marked where files differ from it."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(describe, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "none"


def write(folder: Path, section: Section, where: Environment) -> None:
    """Writes `<name>.md` and `<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "section": section.name,
        "environment": asdict(where),
        "goals": [asdict(goal) for goal in section.goals],
        "notes": list(section.notes),
        "data": section.data,
    }
    (folder / f"{section.name}.json").write_text(
        json.dumps(record, indent=1, default=asdict) + "\n"
    )
    (folder / f"{section.name}.md").write_text(_markdown(section, where))


def _markdown(section: Section, where: Environment) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    machine = (
        f"{where.cpu}, {where.cores} cores, {where.memory_gib} GiB, Linux {where.kernel}; "
        f"{where.date}; commit {where.commit}; load average before the run {where.load_average}."
    )
    software = f"Client: {where.client}, on the same cores. Python {where.python}. {versions}."
    parts = [f"# {section.title}", section.how, machine, software, f"`{where.command}`"]
    if section.goals:
        rows = [[goal.text, goal.measured, _VERDICTS[goal.holds]] for goal in section.goals]
        parts.append(Table("Goals", ["goal", "measured", "holds"], rows).markdown())
    parts += [table.markdown() for table in section.tables]
    parts += [f"- {note}" for note in section.notes]
    return "\n\n".join(parts) + "\n"
