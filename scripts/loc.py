"""Counts code lines against their budgets and prints the difference to the last commit.

A code line carries at least one code token: blanks, comments and docstrings are free, and so are
Rust's test modules. The core engine and the checker of proofs have a bound each, not reached yet,
and a ceiling that must hold; a part's own budget is only a smoke alarm. Run it from the root of the
repository.
"""

import ast
import io
import subprocess
import sys
import tarfile
import tokenize
from dataclasses import dataclass
from pathlib import Path

from rust_lines import count_rust

# The bound that the architecture sets, and the size that the core must not exceed until then: the
# second figure is only ever lowered.
CORE_BOUND = 5_000
CORE_CEILING = 8_965
# The same for the program that proves certificates again.
CHECKER = "verifier: checker"
CHECKER_BOUND = 500
CHECKER_CEILING = 748
MAX_LINES = {".py": 500, ".rs": 600}
ROOTS = ("crates", "python")


@dataclass(frozen=True)
class Part:
    """A counted part: the path prefixes that belong to it and its budget in code lines."""

    name: str
    budget: int
    prefixes: tuple[str, ...]
    core: bool = False


def package(*names: str) -> tuple[str, ...]:
    """Path prefixes of modules or folders of the Python package."""
    return tuple(f"python/lrai/{name}" for name in names)


# The first part whose prefix matches a file owns it, so exceptions stand before the rule.
PARTS = (
    Part("journal", 1_150, ("crates/journal/", "crates/dataplane/src/faces/durable/")),
    Part(
        "faces (Triton extensions, ...)",
        1_200,
        ("crates/dataplane/src/faces/", "python/lrai/gateway/faces/"),
    ),
    Part("load generator", 500, ("crates/loadgen/src/", "crates/native/src/loadgen")),
    Part(
        "scheduler lab, simulator",
        900,
        ("crates/simulator/src/", "crates/native/src/simulator", *package("scheduler/lab/")),
    ),
    Part("other backends", 300, package("backends/openvino", "backends/tvm")),
    Part(
        "ragged input",
        500,
        (
            "crates/dataplane/src/ragged",
            *package("backends/ragged", "scheduler/bands", "scheduler/buckets"),
        ),
    ),
    Part(
        "calibration",
        600,
        package("calibration/", "actors/trial", "scheduler/allocation", "scheduler/drift"),
    ),
    Part("dataplane", 2_300, ("crates/dataplane/src/",), core=True),
    Part("native", 300, ("crates/native/src/",), core=True),
    Part(
        "core, errors, config, log",
        450,
        package("core/", "errors.py", "config", "log.py", "machine.py"),
        core=True,
    ),
    Part("gateway, server", 350, package("gateway/", "server", "lifecycle"), core=True),
    Part("scheduler", 500, package("scheduler/"), core=True),
    Part("actors", 450, package("actors/"), core=True),
    Part("backends", 350, package("backends/"), core=True),
    Part("engine", 250, package("engine")),
    Part("registry", 400, package("registry/")),
    Part("compiler", 1_600, package("compiler/")),
    Part(CHECKER, CHECKER_BOUND, package("verifier/checker/")),
    Part("verifier", 2_200, package("verifier/")),
    Part("monitor", 1_200, package("monitor/")),
    Part("llm", 1_200, package("llm/")),
    Part("cluster", 700, package("cluster/")),
    Part("scaling", 700, package("scaling/")),
    Part("security", 600, package("security/")),
    Part("cli", 600, package("cli/")),
    Part("safety", 400, package("safety/")),
    Part("console", 300, package("console/")),
    Part("testing", 200, package("testing/")),
    Part("everything else", 100, ("crates/", "python/")),
)


def count_python(text: str) -> int:
    """Lines of Python that carry a token other than a comment or a docstring."""
    free = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENCODING, tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in free:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(text))


def docstring_lines(text: str) -> set[int]:
    """Line numbers that docstrings take, those of attributes included."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def is_counted(path: str) -> bool:
    """Whether the file is product code: no stubs, no tests of a crate, nothing built."""
    if not path.startswith(tuple(f"{root}/" for root in ROOTS)):
        return False
    if path.endswith(".rs"):
        return "/src/" in path and not path.endswith("/tests.rs") and "/tests/" not in path
    return path.endswith(".py")


def part_of(path: str) -> Part:
    """The part that owns a file."""
    return next(part for part in PARTS if path.startswith(part.prefixes))


def sizes(files: dict[str, str]) -> dict[str, int]:
    """Code lines by part name."""
    total: dict[str, int] = {}
    for path, text in files.items():
        lines = count_rust(text) if path.endswith(".rs") else count_python(text)
        name = part_of(path).name
        total[name] = total.get(name, 0) + lines
    return total


def working_files() -> dict[str, str]:
    """The counted files of the working tree."""
    paths = (path for root in ROOTS for path in sorted(Path(root).rglob("*")))
    return {
        path.as_posix(): path.read_text(encoding="utf-8")
        for path in paths
        if is_counted(path.as_posix())
    }


def committed_files() -> dict[str, str]:
    """The counted files of the last commit; empty where there is none."""
    command = ["git", "archive", "--format=tar", "HEAD", *ROOTS]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode != 0:
        return {}
    files: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        for member in tar:
            content = tar.extractfile(member) if is_counted(member.name) else None
            if content is not None:
                files[member.name] = content.read().decode("utf-8")
    return files


def too_long(files: dict[str, str]) -> list[str]:
    """One sentence per file that exceeds the largest size, counted in physical lines."""
    found = []
    for path, text in files.items():
        lines, limit = text.count("\n"), MAX_LINES[Path(path).suffix]
        if lines > limit:
            found.append(f"{path} has {lines} lines, more than {limit}. hint: split it by idea")
    return found


def table(now: dict[str, int], before: dict[str, int]) -> int:
    """Prints the parts that exist and returns the sum of the core."""
    print(f"{'counted part':<34}{'code':>7}{'budget':>8}{'change':>8}")
    core_sum = core_before = 0
    for part in sorted(PARTS, key=lambda part: not part.core):
        lines, old = now.get(part.name, 0), before.get(part.name, 0)
        if part.core:
            core_sum, core_before = core_sum + lines, core_before + old
        if lines or old:
            mark = "  over its budget" if lines > part.budget else ""
            kind = "core: " if part.core else ""
            print(f"{kind + part.name:<34}{lines:>7}{part.budget:>8}{lines - old:>+8}{mark}")
    print(f"{'core engine':<34}{core_sum:>7}{CORE_BOUND:>8}{core_sum - core_before:>+8}")
    return core_sum


def main() -> int:
    """Prints the table; 1 if the core or a file is too large."""
    files = working_files()
    now = sizes(files)
    core_sum = table(now, sizes(committed_files()))
    faults = too_long(files)
    for name, lines, bound, ceiling in (
        ("core engine", core_sum, CORE_BOUND, CORE_CEILING),
        (CHECKER, now.get(CHECKER, 0), CHECKER_BOUND, CHECKER_CEILING),
    ):
        if lines > bound:
            print(f"not reached: {name} is {lines - bound} lines above its bound")
        if lines > ceiling:
            faults.append(
                f"{name} has {lines} code lines, more than {ceiling}. "
                "hint: look for the second way of doing a thing"
            )
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
