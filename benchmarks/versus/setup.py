"""Makes the peers' environments: `python -m benchmarks.versus.setup [PEER ...]`.

Each peer gets its own, because their requirements contradict each other.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from benchmarks.models import add_cache_argument
from benchmarks.versus import PEERS

OWN = [name for name, peer in PEERS.items() if peer.packages and not peer.environment_name]
"""The peers that have an environment of their own."""

_FINISHED = ".finished"
"""Marks an environment whose installation was not interrupted."""


def missing_environments(cache: Path) -> list[str]:
    """Those of them that are not installed."""
    folders = {name: PEERS[name](cache).environment_folder for name in OWN}
    return [name for name, folder in folders.items() if not (folder / _FINISHED).exists()]


def make_environment(cache: Path, name: str) -> Path:
    """Makes a peer's environment anew and installs the versions that its launcher names."""
    peer = PEERS[name](cache)
    folder = peer.environment_folder
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([peer.interpreter, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *peer.packages], check=True)
    (folder / _FINISHED).touch()
    return folder


def main() -> None:
    """Makes the environments that are asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_cache_argument(parser)
    parser.add_argument("peers", nargs="*", default=OWN, metavar="PEER", help=", ".join(OWN))
    options = parser.parse_args()
    unknown = sorted(set(options.peers) - set(OWN))
    if unknown:
        parser.error(f"no environment is needed for {', '.join(unknown)}; hint: {', '.join(OWN)}")
    for name in options.peers:
        print(f"{name}: {make_environment(options.cache, name)}", flush=True)


if __name__ == "__main__":
    main()
