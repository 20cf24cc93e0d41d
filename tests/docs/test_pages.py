"""What the pages say exists: links, make targets, commands, flags, environment variables."""

import re
from pathlib import Path

import pytest
import typer

from lrai.cli.main import build_app
from lrai.config import settings_of

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# Flags of other programs that the pages use.
FOREIGN_FLAGS = {"--rm", "--bench"}


def command_names(command: typer.core.TyperGroup, before: str = "lrai") -> dict[str, object]:
    """Every command by what a person types, groups included."""
    found: dict[str, object] = {before: command}
    for name, inner in getattr(command, "commands", {}).items():
        found |= command_names(inner, f"{before} {name}")
    return found


COMMANDS = command_names(typer.main.get_command(build_app()))
FLAGS = {flag for one in COMMANDS.values() for option in one.params for flag in option.opts}


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request):
    return request.param


def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_make_target_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"(?:^ {4}|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    missing = [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)]
    assert not missing


def test_every_command_exists(page):
    named = re.findall(r"(?:^ {4}|`)lrai ([a-z]+)", page.read_text(), re.MULTILINE)
    missing = [name for name in named if f"lrai {name}" not in COMMANDS]
    assert not missing


def test_every_flag_exists(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text()))
    assert named <= FLAGS | FOREIGN_FLAGS


def test_every_variable_exists(page):
    named = set(re.findall(r"LRAI_[A-Z_]+[A-Z]", page.read_text()))
    known = {setting.variable for setting in settings_of()}
    sections = {f"LRAI_{setting.section.upper()}" for setting in settings_of()}
    assert named <= known | sections


def test_the_readme_opens_with_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert lines[0] == "# lrai"
    assert lines[2].startswith("    make demo")
    assert lines[3].startswith("    make test")
