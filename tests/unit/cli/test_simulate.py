import json

import pytest

from lrai.cli.main import main

SHORT = ["simulate", "--service", "80,13", "--goal", "1ms", "-d", "3s", "--warmup", "1s"]


def test_it_prints_a_table_and_draws_a_picture(tmp_path, capsys):
    picture = tmp_path / "policies.svg"
    options = ["--trace", "step", "--policies", "greedy,model-based", "--plot", str(picture)]
    assert main([*SHORT, *options]) == 0
    head, greedy, model, note = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["trace", "policy"]
    assert greedy.split()[:2] == ["step", "greedy"]
    assert model.split()[:2] == ["step", "model-based"]
    assert note.startswith("simulated")
    assert picture.read_text().startswith("<svg")


def test_a_trace_file_is_judged_on_its_second_half(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("".join(f"{at / 1000}\n" for at in range(4000)))
    assert main([*SHORT, "--trace", str(path), "--policies", "greedy", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["trace"], one["policy"]) == ("mine", "greedy")
    assert one["outcome"]["requests"] == 1000


def test_requests_of_different_length_share_no_batch_without_buckets(tmp_path, capsys):
    def median_s(*options):
        assert main([*SHORT, "--trace", "poisson-0.5", "-p", "greedy", "--json", *options]) == 0
        (one,) = json.loads(capsys.readouterr().out)
        return one["outcome"]["p50_s"]

    assert median_s("--lengths", "64,0.8,512") > 2 * median_s()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--trace", "storm"], "there is no trace 'storm'"),
        (["--policies", "best"], "there is no policy 'best'"),
        (["--plot", "picture.png"], "is no .svg file"),
        (["--lengths", "64,0.8"], "--lengths is '64,0.8'"),
        (["--lengths", "64,0.8,32"], "--lengths is '64,0.8,32'"),
        (["--goal", "fast"], "--goal is 'fast'"),
        (["--goal", "1e300s"], "--goal is '1e300s'"),
        (["--service", "fast"], "names no service times"),
        (["--duration", "0s"], "a trace of 0 s"),
        (["--duration", "1e6s"], "cannot be made"),
        (["--duration", "1us"], "no request arrives in poisson-0.2"),
        (["--policies", ""], "there is no policy ''"),
    ],
)
def test_what_cannot_be_simulated_is_said(options, text, capsys):
    assert main([*SHORT, *options]) == 2
    message = capsys.readouterr().err
    assert text in message
    assert "hint: " in message
