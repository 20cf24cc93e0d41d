"""Writes docs/reference from the code: settings from lrai.config, metrics from a server.

`--check` compares with the files instead of writing them.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from lrai.config import SECTIONS, Setting, settings_of

FOLDER = Path("docs/reference")
EXAMPLE = Path("examples/python_backend")

SETTINGS_HEAD = """\
# Settings

Written by `make docs` from `python/lrai/config.py`; do not edit it here.

A value comes from the default, then the TOML file given with `--config`, then the environment,
then the flag; the later one wins. A value that cannot be used stops the start. Durations are
written with a unit (`250ms`, `30s`, `15m`), sizes too (`64MiB`, `2GB`).
"""

METRICS_HEAD = """\
# Metrics

Written by `make docs` from a running server; do not edit it here. They are served as Prometheus
text under `/metrics` on the metrics port and on the HTTP port.

| metric | kind | labels | what it says |
|---|---|---|---|
"""


def shown(setting: Setting) -> str:
    """A default as a person would write it."""
    value = setting.default
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "true" if value else "false"
    if setting.kind.word == "SIZE" and value:
        return f"{value >> 20}MiB"
    if setting.kind.word == "DURATION":
        return f"{value:g}s" if value >= 1 or not value else f"{value * 1000:g}ms"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def settings_page() -> str:
    """One table per section of the configuration."""
    lines = [SETTINGS_HEAD]
    for section, kind in SECTIONS.items():
        lines += [f"## [{section}]", "", (kind.__doc__ or "").strip(), ""]
        lines += ["| flag | environment | value | default | meaning |", "|---|---|---|---|---|"]
        for setting in settings_of(section):
            default = f"`{shown(setting)}`" if shown(setting) else ""
            word = setting.kind.word.replace("|", "\\|")
            lines.append(
                f"| `{setting.flag}` | `{setting.variable}` | {word} | {default} | {setting.doc} |"
            )
        lines.append("")
    return "\n".join(lines)


def scrape() -> str:
    """What a server with one model and a journal shows under /metrics."""
    program = Path(sys.executable).with_name("lrai")
    ports = [f"--{face}-port=0" for face in ("http", "grpc", "metrics")]
    command = [str(program), "serve", str(EXAMPLE), "--log-format=json", *ports]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*command, "--state", folder], stderr=subprocess.PIPE, text=True
        ) as server,
    ):
        address = ""
        for line in server.stderr or ():
            event = json.loads(line)
            address = event.get("metrics", address)
            if event["event"] == "settled":
                break
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
                return str(response.read(), "utf-8")
        finally:
            server.terminate()
            server.communicate()


def metrics_page() -> str:
    """One row per metric family of a running server, with the labels that its samples carry."""
    text = scrape()
    kinds = dict(re.findall(r"^# TYPE (lrai_\w+) (\w+)$", text, re.MULTILINE))
    page = METRICS_HEAD
    for name, sentence in re.findall(r"^# HELP (lrai_\w+) (.+)$", text, re.MULTILINE):
        samples = re.findall(rf"^{name}(?:_bucket)?{{(.+?)}} ", text, re.MULTILINE)
        labels = {label for sample in samples for label in re.findall(r'(\w+)="', sample)}
        shown = ", ".join(f"`{label}`" for label in sorted(labels - {"le"}))
        page += f"| `{name}` | {kinds[name]} | {shown} | {sentence} |\n"
    reasons = sorted(set(re.findall(r'^(lrai_\w+){.*reason="(\w+)"', text, re.MULTILINE)))
    for name in sorted({name for name, _ in reasons}):
        words = ", ".join(f"`{reason}`" for at, reason in reasons if at == name)
        page += f"\nReasons of `{name}`: {words}.\n"
    return page


def main() -> int:
    """Writes the pages, or with --check says which are not fresh."""
    parser = argparse.ArgumentParser(description="Reference pages from the code")
    parser.add_argument("--check", action="store_true", help="fail when a page is not fresh")
    check = parser.parse_args().check
    stale = []
    for name, text in {"settings.md": settings_page(), "metrics.md": metrics_page()}.items():
        path = FOLDER / name
        if check and not (path.exists() and path.read_text(encoding="utf-8") == text):
            stale.append(path)
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"error: {path} is not fresh. hint: run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
