"""Writes docs/reference from the code: settings from lrai.config, metrics from the data plane.

`--check` compares with the files instead of writing them.
"""

import argparse
import re
import sys
from pathlib import Path

from lrai.config import SECTIONS, Setting, settings_of

FOLDER = Path("docs/reference")
METRICS_SOURCE = Path("crates/dataplane/src/metrics.rs")

SETTINGS_HEAD = """\
# Settings

Written by `make docs` from `python/lrai/config.py`; do not edit it here.

A value comes from the default, then the TOML file given with `--config`, then the environment,
then the flag; the later one wins. A value that cannot be used stops the start. Durations are
written with a unit (`250ms`, `30s`, `15m`), sizes too (`64MiB`, `2GB`).
"""

METRICS_HEAD = """\
# Metrics

Written by `make docs` from the data plane's source; do not edit it here. They are served as
Prometheus text under `/metrics` on the metrics port and on the HTTP port.

| metric | kind | what it says |
|---|---|---|
"""

# What the page-writing functions of the source render when no kind is named.
KINDS = {"histogram": "histogram", "reasons": "counter with the label `reason`"}


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


def metrics_page() -> str:
    """One row per metric family that the data plane describes."""
    source = METRICS_SOURCE.read_text(encoding="utf-8")
    source = re.sub(r'let name = ("lrai_\w+");\s*self\.head\(name', r"self.head(\1", source)
    call = r'\.(histogram|reasons|numbers|head)\(\s*"(lrai_\w+)",\s*(?:"(\w+)",\s*)?"([^"]+)"'
    rows = (
        (name, kind or KINDS[verb], text) for verb, name, kind, text in re.findall(call, source)
    )
    return METRICS_HEAD + "".join(f"| `{name}` | {kind} | {text} |\n" for name, kind, text in rows)


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
