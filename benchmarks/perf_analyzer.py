"""Runs Triton's perf_analyzer against a server: `python -m benchmarks.perf_analyzer --folder DIR`.

The program comes out of a tritonclient wheel that still holds it; that and the two libraries which
it needs are unpacked into the folder, not installed. Made for Debian 12 and the like (glibc 2.34).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

# The last wheel that runs with glibc 2.36; later ones need 2.38, and from 2.61 on it is gone.
CLIENT = "tritonclient==2.51.0"
CUDA = "nvidia-cuda-runtime-cu12"
LIBRARY = "libb64-0d"
CONCURRENCIES = (1, 8, 64)


def prepare(folder: Path) -> dict[str, str]:
    """Downloads and unpacks what is missing; returns the environment to run it in."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "perf_analyzer"
    if not program.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        wheels = ["--only-binary=:all:", f"--dest={folder}", CLIENT, CUDA]
        subprocess.run([*pip, *wheels], check=True)
        subprocess.run(["apt-get", "download", LIBRARY], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder / "libraries"], check=True)
        for wheel in folder.glob("*.whl"):
            _unpack(wheel, folder)
    libraries = {str(path.parent) for path in folder.rglob("*.so.*")}
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(libraries))}


def _unpack(wheel: Path, folder: Path) -> None:
    """Takes the program and the CUDA runtime out of their wheels."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = Path(name).name
            if base == "perf_analyzer" or base.startswith("libcudart.so"):
                target = folder / base
                target.write_bytes(archive.read(name))
                target.chmod(0o755)


def sweep(folder: Path, address: str, face: str, model: str) -> bool:
    """One run per concurrency; says whether all succeeded."""
    environment = prepare(folder)
    succeeded = True
    for concurrency in CONCURRENCIES:
        flags = ["-m", model, "-u", address, "-i", face, f"--concurrency-range={concurrency}"]
        if face == "http":
            flags.append("--input-tensor-format=binary")
        # The client shares the server's cores: windows differ by more than the default 10%.
        steady = ["--measurement-interval=3000", "--stability-percentage=25"]
        command = [str(folder / "perf_analyzer"), *flags, *steady]
        print(f"$ perf_analyzer {' '.join(flags)}", flush=True)
        answer = subprocess.run(command, env=environment, check=False, timeout=300)
        succeeded = succeeded and answer.returncode == 0
    return succeeded


def main() -> int:
    """Sweeps over HTTP and gRPC; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the program is unpacked")
    parser.add_argument("--http", default="127.0.0.1:8000", help="address; empty leaves it out")
    parser.add_argument("--grpc", default="127.0.0.1:8001", help="address; empty leaves it out")
    parser.add_argument("--model", default="mlp")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    addresses = {"http": options.http, "grpc": options.grpc}
    asked = {face: address for face, address in addresses.items() if address}
    results = [sweep(folder, address, face, options.model) for face, address in asked.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
