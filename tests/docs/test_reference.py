"""The generated pages are fresh, and every setting has its sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from lrai.config import settings_of

ROOT = Path(__file__).parents[2]


def test_reference_pages_are_fresh():
    command = [sys.executable, "scripts/reference.py", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("setting", list(settings_of()), ids=lambda setting: setting.name)
def test_every_setting_is_explained_in_one_sentence(setting):
    assert setting.doc.endswith(".")
    assert len(setting.doc) > 10


def test_setting_names_are_unique_over_all_sections():
    names = [setting.name for setting in settings_of()]
    assert len(names) == len(set(names))
