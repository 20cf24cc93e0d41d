from typing import Any

import pytest

from lrai.cli import main as cli
from lrai.config import Settings, settings_of


class ExecutedError(Exception):
    """Stands for the process that `serve` becomes."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function from arguments to the settings of the process that would serve."""
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    command: list[str] = []

    def execv(_path: str, arguments: list[str]) -> None:
        command.extend(arguments)
        raise ExecutedError

    monkeypatch.setattr("os.execv", execv)

    def run(*arguments: str) -> Settings:
        with pytest.raises(ExecutedError):
            cli.main(["serve", *arguments])
        assert command[-1] == "lrai.server"
        return Settings.from_json(environment["LRAI_SERVE_SETTINGS"])

    return run


def test_path_is_enough(serve: Any) -> None:
    settings = serve("model.onnx")
    assert settings.repository.path == "model.onnx"
    assert settings.gateway == Settings().gateway


def test_flags_reach_the_serving_process(serve: Any) -> None:
    settings = serve(
        "m", "--http-port", "0", "--tau", "2ms", "--memory-limit=1GiB", "--host", "::1"
    )
    assert settings.gateway.http_port == 0
    assert settings.gateway.host == "::1"
    assert settings.knobs.tau_s == pytest.approx(0.002)
    assert settings.model.memory_limit_bytes == 1 << 30


@pytest.mark.parametrize("flag", ["--model-repository", "--model-store", "--path"])
def test_repository_may_be_named_as_triton_does(serve: Any, flag: str) -> None:
    assert serve(f"{flag}=/mnt/models").repository.path == "/mnt/models"


@pytest.mark.parametrize(
    ("arguments", "is_strict"),
    [
        (["--strict-readiness"], True),
        (["--strict-readiness=true"], True),
        (["--strict-readiness", "true"], True),
        (["--no-strict-readiness"], False),
        (["--strict-readiness=false"], False),
        (["--strict-readiness", "--log-level", "debug"], True),
    ],
)
def test_switch_is_written_in_every_usual_way(
    serve: Any, arguments: list[str], is_strict: bool
) -> None:
    assert serve("m", *arguments).repository.strict_readiness is is_strict


def test_models_to_load_may_be_repeated_or_listed(serve: Any) -> None:
    settings = serve("m", "--load-model=a", "--load-model", "b,c")
    assert settings.repository.load_model == ("a", "b", "c")


def test_flags_of_triton_without_effect_are_accepted_and_told(serve: Any) -> None:
    settings = serve("m", "--allow-http=true", "--disable-auto-complete-config", "--log-verbose=1")
    assert settings.notes == (
        "--disable-auto-complete-config has no effect here",
        "--log-verbose has no effect here",
    )


def test_help_tells_every_setting_with_its_flag_and_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main(["serve", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in settings_of():
        assert f"{setting.flag}" in text
        assert setting.doc in text
        assert setting.variable in text


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["serve", *arguments])
    return code, capsys.readouterr().err


def test_bad_value_is_a_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refusal(capsys, "m", "--drain-timeout", "soon")
    assert code == 2
    assert text == (
        "error: --drain-timeout has the value 'soon', which cannot be used"
        " hint: write a number with a unit, such as 30s or 20ms\n"
    )


def test_no_model_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys) == (
        2,
        "error: there is no model to serve hint: lrai serve PATH, or --model-repository PATH\n",
    )


def test_what_should_be_closed_is_not_left_open(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refusal(capsys, "m", "--allow-grpc=false")
    assert code == 2
    assert "--allow-grpc cannot be switched off" in text


def test_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refusal(capsys, "m", "--grpc-use-ssl=true")
    assert code == 2
    assert "--grpc-use-ssl" in text
