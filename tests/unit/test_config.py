from dataclasses import replace
from pathlib import Path

import pytest

from lrai.config import Settings, load_settings, overlay, read_toml, settings_of
from lrai.errors import ConfigError


def test_defaults_need_nothing() -> None:
    assert load_settings({}, {}) == Settings()


def test_later_source_wins_over_the_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "lrai.toml"
    file.write_text('[gateway]\nhttp_port = 1\ngrpc_port = 1\nhost = "::1"\n')
    environment = {"LRAI_GATEWAY_HTTP_PORT": "2", "LRAI_GATEWAY_GRPC_PORT": "2"}
    gateway = load_settings({"http_port": "3"}, environment, file).gateway
    assert (gateway.http_port, gateway.grpc_port, gateway.host) == (3, 2, "::1")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("30s", 30.0), ("20ms", 0.02), ("1.5 s", 1.5), ("250us", 250e-6), ("2m", 120.0)],
)
def test_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    settings = load_settings({"drain_timeout": text}, {})
    assert settings.server.drain_timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("64MiB", 64 << 20), ("1Ki", 1024), ("2 GB", 2 * 10**9), ("1GiB", 1 << 30)],
)
def test_size_is_a_number_with_a_unit(text: str, size: int) -> None:
    assert load_settings({"max_body_bytes": text}, {}).gateway.max_body_bytes == size


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("drain_timeout", "soon"),
        ("drain_timeout", "-1s"),
        ("drain_timeout", "nans"),
        ("drain_timeout", "1e300s"),
        ("max_body_bytes", "1e30"),
        ("max_queue_requests", "2147483648"),
        ("max_body_bytes", "64 furlongs"),
        ("max_body_bytes", ""),
        ("http_port", "70000"),
        ("http_port", "off"),
        ("replicas", "-1"),
        ("replicas", "two"),
        ("retry", "perhaps"),
        ("model_control_mode", "sometimes"),
    ],
)
def test_bad_value_stops_with_its_source_and_a_hint(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({name: text}, {})
    assert caught.value.message.startswith(f"--{name.replace('_', '-')} has the value {text!r}")
    assert caught.value.hint


@pytest.mark.parametrize("value", [{"a": 1}, {}])
def test_a_table_is_no_value(value: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"\[server\] state has the value ['\"]\{"):
        overlay(Settings(), {"server": {"state": value}}, Path("lrai.toml"))


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {"LRAI_JOURNAL_PLACE": "rediss://user:secret@host"})
    assert "secret" not in str(caught.value)
    assert "'host'" in caught.value.message


def test_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="LRAI_MODEL_REPLICAS has the value '-1'"):
        load_settings({}, {"LRAI_MODEL_REPLICAS": "-1"})


def test_variables_of_others_are_left_alone() -> None:
    # Kubernetes makes these for a service that is called lrai.
    environment = {"LRAI_PORT": "tcp://10.0.0.1:8000", "LRAI_SERVICE_HOST": "10.0.0.1"}
    assert load_settings({}, environment) == Settings()


def test_metrics_port_can_be_off() -> None:
    assert load_settings({"metrics_port": "off"}, {}).gateway.metrics_port is None


def test_misspelt_setting_of_a_file_names_its_neighbour(tmp_path: Path) -> None:
    file = tmp_path / "lrai.toml"
    file.write_text("[gateway]\nhtp_port = 1\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'htp_port' hint: did you mean http_po"):
        load_settings({}, {}, file)


def test_unknown_section_names_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "lrai.toml"
    file.write_text("[gatewy]\n")
    with pytest.raises(ConfigError, match=r"no section \[gatewy\] hint: use gateway, "):
        load_settings({}, {}, file)


def test_file_of_a_model_may_only_set_the_model() -> None:
    with pytest.raises(ConfigError, match=r"no section \[gateway\] hint: use knobs, model"):
        overlay(Settings(), {"gateway": {}}, Path("lrai.toml"), "model", "knobs")


def test_broken_toml_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "lrai.toml"
    file.write_text("[gateway\n")
    with pytest.raises(ConfigError, match="is no TOML: "):
        read_toml(file)


def test_absent_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent cannot be read: No such file .* hint: "):
        read_toml(tmp_path / "absent")


def test_toml_values_keep_their_meaning(tmp_path: Path) -> None:
    file = tmp_path / "lrai.toml"
    file.write_text('[repository]\nload_model = ["a", "b"]\nstrict_readiness = true\n')
    repository = load_settings({}, {}, file).repository
    assert repository.load_model == ("a", "b")
    assert repository.strict_readiness is True


def test_settings_survive_the_way_to_another_process() -> None:
    settings = replace(load_settings({"load_model": "a,b", "tau": "2ms"}, {}), notes=("a note",))
    assert Settings.from_json(settings.to_json()) == settings


def test_every_name_flag_and_variable_is_unique_and_documented() -> None:
    known = list(settings_of())
    for attribute in ("name", "flag", "variable"):
        values = [getattr(setting, attribute) for setting in known]
        assert len(set(values)) == len(values)
    assert all(setting.doc.endswith(".") for setting in known)


def test_every_default_is_a_value_that_its_own_kind_reads() -> None:
    for setting in settings_of():
        if setting.default not in ((), None):
            text = str(setting.default)
            assert setting.read(
                text.lower() if setting.default in (True, False) else text, "x"
            ) == (setting.default)


def test_duration_may_carry_its_unit_in_the_name() -> None:
    tables = {"scheduler": {"latency_goal_ms": 2.5}}
    settings = overlay(Settings(), tables, Path("lrai.toml"), "scheduler")
    assert settings.scheduler.latency_goal_s == pytest.approx(0.0025)
    with pytest.raises(ConfigError, match="cpu_cost_ms"):
        overlay(Settings(), {"scheduler": {"cpu_cost_ms": 1}}, Path("lrai.toml"), "scheduler")
