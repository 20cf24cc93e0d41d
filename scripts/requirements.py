"""Prints what lrai and some of its extras need, one requirement per line, without building lrai."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extra: str) -> Iterator[str]:
    """Yield the requirements of an extra; one that names lrai itself stands for its extras."""
    for line in project["optional-dependencies"][extra]:
        own = re.fullmatch(r"lrai\[(.+)\]", line)
        if own:
            for inner in own.group(1).split(","):
                yield from requirements(project, inner)
        else:
            yield line


def main() -> None:
    """Print the requirements of lrai and of the extras that the arguments name."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print(*project["dependencies"], sep="\n")
    for extra in sys.argv[1:]:
        print(*requirements(project, extra), sep="\n")


if __name__ == "__main__":
    main()
