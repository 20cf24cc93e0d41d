"""`lrai doctor`: what this machine has, what is missing, and the cure."""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from lrai.cli.table import print_table
from lrai.machine import available_cpus, available_memory_bytes

State = Literal["ok", "note", "missing"]

_PROBE_TIMEOUT_S: Final = 60.0
_ENOUGH_DESCRIPTORS: Final = 65_536
_FLAGS: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_SAFE_ISA: Final = "AVX512_CORE_BF16"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    """`missing` means that lrai cannot serve here; a `note` costs speed or a feature."""
    found: str
    cure: str = ""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(_doctor)


def _doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look at this machine: what it has, what is missing, and how to get it.

    Engines and instruction sets are tried in child processes. Exit code 1 if something that
    serving needs is missing.
    """
    checks = list(examine())
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        rows = [(one.state, one.name, one.found, one.cure) for one in checks]
        print_table(("", "what", "found", "cure"), rows)
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


def examine() -> Iterator[Check]:
    """Look at one thing after the other."""
    yield Check("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield from _packages()
    yield from _machine()
    yield _memfd()
    yield from _probes()


def _packages() -> Iterator[Check]:
    needed = {name: f"pip install {name}" for name in ("numpy", "onnxruntime", "pyzmq")}
    needed |= {"setproctitle": "pip install setproctitle"}
    optional = {
        "openvino": "pip install openvino, for a second engine",
        "pillow": "pip install pillow, for images in lrai infer",
        "onnx": "pip install onnx, to write and change models",
    }
    built = find_spec("lrai._native") is not None
    yield Check(
        "lrai._native",
        "ok" if built else "missing",
        "the data plane is built" if built else "the data plane is not built",
        "" if built else "pip install lrai, or make setup in a checkout",
    )
    for name, cure in (needed | optional).items():
        try:
            yield Check(name, "ok", version(name))
        except PackageNotFoundError:
            yield Check(name, "missing" if name in needed else "note", "not installed", cure)


def _machine() -> Iterator[Check]:
    flags = _processor_flags()
    has = ", ".join(flag for flag in _FLAGS if flag in flags) or "none of those that matter"
    yield Check("processors", "ok", f"{available_cpus()} of {os.cpu_count()} may be used")
    yield Check("processor flags", "ok", f"{has} (claimed; see the probes)")
    gib = available_memory_bytes() / (1 << 30)
    yield Check("memory", "ok", f"{gib:.1f} GiB may be used; a model may take half of it")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_enough = most == resource.RLIM_INFINITY or most >= _ENOUGH_DESCRIPTORS
    found = f"{'any number of' if most == resource.RLIM_INFINITY else most} open files"
    cure = f"ulimit -Hn {_ENOUGH_DESCRIPTORS}, or LimitNOFILE in systemd, for more connections"
    yield Check("descriptors", "ok" if is_enough else "note", found, "" if is_enough else cure)


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }


def _memfd() -> Check:
    """Slabs need memory that actors can neither shrink nor write to."""
    import fcntl

    future_write = 0x10
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | future_write
    try:
        memory = os.memfd_create("lrai-doctor", os.MFD_ALLOW_SEALING)
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        finally:
            os.close(memory)
    except OSError as error:
        cure = "use Linux 5.1 or newer, and a sandbox that allows memfd_create"
        return Check("sealed memory", "missing", f"memfd: {error.strerror}", cure)
    return Check("sealed memory", "ok", "memfd with seals")


def _probes() -> Iterator[Check]:
    yield _judge("fork", "template of actors", "missing", "allow prctl and fork in the sandbox")
    flags = _processor_flags()
    int8 = [flag for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if flag in flags]
    reinstall = "pip install --force-reinstall onnxruntime"
    yield _judge("onnxruntime_fp32", "onnxruntime fp32", "missing", reinstall)
    name = f"onnxruntime int8 ({', '.join(int8) or 'no int8 instructions'})"
    yield _judge("onnxruntime_int8", name, "note", "serve fp32 models")
    if find_spec("openvino") is None:
        return
    check = _judge("openvino", "openvino", "note", "use onnxruntime")
    if "SIGILL" in check.found:
        isa = {"ONEDNN_MAX_CPU_ISA": _SAFE_ISA}
        again = _judge("openvino", "openvino", "note", "use onnxruntime", isa)
        if again.state == "ok":
            cure = f"set ONEDNN_MAX_CPU_ISA={_SAFE_ISA}; with it a model ran"
            check = Check(check.name, "note", check.found, cure)
    yield check


def _judge(
    probe: str, name: str, worst: State, cure: str, environment: Mapping[str, str] | None = None
) -> Check:
    """Run a probe in a child and say what became of it."""
    command = [sys.executable, "-P", "-m", "lrai.cli.probe", probe]
    try:
        child = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name, worst, f"no answer within {_PROBE_TIMEOUT_S:g} s", cure)
    if child.returncode < 0:
        cause = signal.Signals(-child.returncode).name
        return Check(name, worst, f"the child died of {cause}: a flag lies", cure)
    if child.returncode > 0:
        reason = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check(name, worst, f"it failed: {reason}", cure)
    result: dict[str, Any] = json.loads(child.stdout)
    if not result.pop("right"):
        return Check(name, worst, f"it ran, with a wrong result {result or ''}".rstrip(), cure)
    told = ", ".join(f"{key} {value}" for key, value in result.items())
    return Check(name, "ok", f"ran with the right result{f' ({told})' if told else ''}")
