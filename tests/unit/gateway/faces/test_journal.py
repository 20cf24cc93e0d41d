from pathlib import Path

import pytest

from lrai.config import load_settings
from lrai.errors import ConfigError
from lrai.gateway.faces.journal import journal_config


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        ({}, None),
        ({"state": "/s"}, "sqlite:/s"),
        ({"place": "sqlite"}, "sqlite:/home/x/.local/state/lrai"),
        ({"place": "off", "state": "/s"}, None),
        ({"place": "redis://h:1/2", "state": "/s"}, "redis://h:1/2"),
    ],
)
def test_a_folder_for_state_is_a_journal_unless_told_otherwise(
    flags: dict[str, str], place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    config = journal_config(load_settings(flags, {}))
    assert (config and config["place"]) == place


def test_limits_and_times_cross_in_the_data_planes_units() -> None:
    flags = {
        "place": "sqlite",
        "keep": "90s",
        "patience": "1.5s",
        "max_bytes": "1MiB",
        "webhooks": "http://a,http://b/c",
    }
    config = journal_config(load_settings(flags, {}))
    assert config is not None
    assert (config["keep_ms"], config["patience_ms"]) == (90_000, 1500)
    assert config["max_bytes"] == 1 << 20
    assert config["webhooks"] == ("http://a", "http://b/c")


def test_the_state_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/x")
    assert load_settings({}, {}).server.state_folder() == Path("/var/x/lrai")


def test_another_place_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="--journal has the value 'postgres://h'") as caught:
        load_settings({"place": "postgres://h"}, {})
    assert "redis://HOST:PORT" in caught.value.hint
