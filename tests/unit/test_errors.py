import inspect

import pytest

from lrai import errors

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.LraiError)
]


def test_message_ends_with_its_hint() -> None:
    error = errors.ConfigError("--http-port is 70000", hint="use 0 to 65535")
    assert str(error) == "--http-port is 70000 hint: use 0 to 65535"


def test_message_without_hint_stands_alone() -> None:
    assert str(errors.LraiError("it broke")) == "it broke"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_code_that_the_data_plane_knows(kind: type[errors.LraiError]) -> None:
    assert kind.code in ("internal", "invalid", "not_found", "unsupported", "unavailable")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_stands_in_the_tree_of_the_file(kind: type[errors.LraiError]) -> None:
    assert errors.__doc__
    (line,) = [line for line in errors.__doc__.splitlines() if f" {kind.__name__} " in f" {line}"]
    assert kind.code in line
