"""Collects the licences of the Rust crates that travel in the wheel.

The list is what `cargo metadata` resolves for the native library on the platforms we build, without
build and test dependencies; the texts come from the crates' own sources, so nothing is fetched that
a build does not fetch. `--check` compares with the file instead of writing it.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

OUTPUT = Path("LICENSES-rust.txt")
ROOT_CRATE = "lrai-native"
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
FILE_PREFIXES = ("license", "licence", "copying", "copyright", "notice", "unlicense")
RULE = "-" * 100


@dataclass(frozen=True)
class Crate:
    """One third-party crate and the texts that it ships."""

    name: str
    version: str
    expression: str
    authors: tuple[str, ...]
    repository: str
    texts: tuple[str, ...]


def metadata() -> dict[str, Any]:
    """What cargo resolves, read from Cargo.lock."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    for platform in PLATFORMS:
        command += ["--filter-platform", platform]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        sys.exit(f"error: cargo metadata failed: {answer.stderr.strip()}")
    document: dict[str, Any] = json.loads(answer.stdout)
    return document


def linked(document: dict[str, Any]) -> set[str]:
    """Ids of the crates that reach the native library by normal dependencies.

    Procedural macros run in the compiler only, so neither they nor what they use travels.
    """
    nodes = {node["id"]: node for node in document["resolve"]["nodes"]}
    names = {package["id"]: package["name"] for package in document["packages"]}
    macros = {
        package["id"]
        for package in document["packages"]
        if any("proc-macro" in target["kind"] for target in package["targets"])
    }
    found: set[str] = set()
    waiting = [key for key, name in names.items() if name == ROOT_CRATE]
    while waiting:
        key = waiting.pop()
        if key in found:
            continue
        found.add(key)
        for dependency in nodes[key]["deps"]:
            is_normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if is_normal and dependency["pkg"] not in macros:
                waiting.append(dependency["pkg"])
    return found


def texts(folder: Path) -> tuple[str, ...]:
    """The licence texts in a crate's folder, without trailing blanks."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name.lower().startswith(FILE_PREFIXES)
    )
    raw = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return tuple("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in raw)


def third_party() -> list[Crate]:
    """Every linked crate that is not ours, sorted by name and version."""
    document = metadata()
    keys = linked(document)
    crates = [
        Crate(
            package["name"],
            package["version"],
            package["license"] or "see the text",
            tuple(author.split(" <")[0] for author in package["authors"]),
            package["repository"] or "",
            texts(Path(package["manifest_path"]).parent),
        )
        for package in document["packages"]
        if package["id"] in keys and package["source"] is not None
    ]
    return sorted(map(partial(complete, crates), crates), key=lambda one: (one.name, one.version))


def complete(crates: list[Crate], crate: Crate) -> Crate:
    """A crate that ships no text takes that of a sibling from the same repository."""
    if crate.texts:
        return crate
    siblings = (one.texts for one in crates if one.repository == crate.repository and one.texts)
    return replace(crate, texts=next(siblings, ()))


def render(crates: list[Crate]) -> str:
    """One document: the list first, then each different text once with the crates it covers."""
    covered: dict[str, list[str]] = {}
    lines = ["Third-party Rust crates in the native half of lrai, and their licences.", ""]
    for crate in crates:
        label = f"{crate.name} {crate.version}"
        by = f", by {', '.join(crate.authors)}" if crate.authors else ""
        lines.append(f"{label}: {crate.expression}{by}")
        for text in crate.texts:
            covered.setdefault(text, []).append(label)
    for text, labels in covered.items():
        lines += ["", RULE, ", ".join(labels), RULE, "", text]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes the file, or with --check says whether it is fresh."""
    parser = argparse.ArgumentParser(description="Licences of the Rust crates in the wheel")
    parser.add_argument("--check", action="store_true", help="fail when the file is not fresh")
    wanted = render(third_party())
    if not parser.parse_args().check:
        OUTPUT.write_text(wanted, encoding="utf-8")
        return 0
    if OUTPUT.exists() and OUTPUT.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"error: {OUTPUT} is not fresh. hint: run `make licenses`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
