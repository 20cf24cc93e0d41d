"""Small guards of the house: public names, where unsafe may stand, what the serving process loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import lrai

ROOT = Path(__file__).parents[2]
UNSAFE_HOMES = {"link.rs", "mailbox.rs", "slab.rs"}
HEAVY = {"numpy", "onnx", "onnxruntime", "pydantic", "rich", "typer"}


def test_public_names_are_sorted_and_exist():
    assert lrai.__all__ == sorted(lrai.__all__)
    assert all(getattr(lrai, name) for name in lrai.__all__)


def test_unsafe_stands_in_three_files_only():
    sources = (ROOT / "crates/dataplane/src").rglob("*.rs")
    found = {path.name for path in sources if re.search(r"\bunsafe\b", path.read_text())}
    assert found <= UNSAFE_HOMES


def test_the_serving_process_imports_no_heavy_library():
    program = "import sys, lrai.server; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", program]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(modules)


def test_the_checker_imports_nothing_of_ours_but_itself():
    files = sorted((ROOT / "python/lrai/verifier/checker").glob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    ours = {name for name in names if name.split(".")[0] in ("lrai", "")}
    assert ours
    assert all(name.startswith("lrai.verifier.checker.") for name in ours)


def test_every_folder_says_what_it_is_and_never_does():
    rooms = list((ROOT / "python/lrai").glob("*/__init__.py"))
    assert rooms
    silent = [room.parent.name for room in rooms if "ever" not in room.read_text()]
    assert not silent


def test_changelog_fragments_have_a_kind():
    kinds = {"added", "changed", "fixed", "removed", "security"}
    names = [path.name for path in (ROOT / "changes").glob("*.md") if path.name != "README.md"]
    assert all(re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(kinds)})\.md", name) for name in names)
