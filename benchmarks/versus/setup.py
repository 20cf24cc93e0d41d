"""Makes the peers' environments: `python -m benchmarks.versus.setup --cache DIR [PEER ...]`.

Each peer gets its own, because their requirements contradict each other.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from benchmarks.versus import PEERS


def make_environment(cache: Path, name: str) -> Path:
    """Makes a peer's environment anew and installs the versions that its launcher names."""
    peer = PEERS[name](cache)
    folder = peer.environment_folder
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([peer.interpreter, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *peer.packages], check=True)
    return folder


def main() -> None:
    """Makes the environments that are asked for, or all of them."""
    own = sorted(
        name for name, peer in PEERS.items() if peer.packages and not peer.environment_name
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder that keeps the environments"
    )
    parser.add_argument("peers", nargs="*", default=own, metavar="PEER", help=", ".join(own))
    options = parser.parse_args()
    unknown = sorted(set(options.peers) - set(own))
    if unknown:
        parser.error(f"no environment is needed for {', '.join(unknown)}; hint: {', '.join(own)}")
    for name in options.peers:
        print(f"{name}: {make_environment(options.cache, name)}", flush=True)


if __name__ == "__main__":
    main()
