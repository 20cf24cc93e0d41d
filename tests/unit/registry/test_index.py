from collections.abc import Sequence

import pytest

from lrai.errors import ModelLoadError
from lrai.registry.index import Entry, Index, IndexRow

ERROR = ModelLoadError("it is broken")


@pytest.fixture
def shown() -> list[Sequence[IndexRow]]:
    return []


@pytest.fixture
def index(shown: list[Sequence[IndexRow]]) -> Index:
    return Index(shown.append)


def test_rows_are_sorted_by_name_and_number(index: Index, shown: list[Sequence[IndexRow]]) -> None:
    for name, version in (("b", "1"), ("a", "10"), ("a", "9")):
        index.set(name, version, Entry("READY", key=1))
    assert [(row.name, row.version) for row in shown[-1]] == [("a", "9"), ("a", "10"), ("b", "1")]


def test_known_name_gives_way_to_its_versions(
    index: Index, shown: list[Sequence[IndexRow]]
) -> None:
    index.know(["a"])
    index.set("a", "1", Entry("LOADING"))
    index.know(["a"])
    assert shown[-1] == [IndexRow("a", "1", "LOADING")]


def test_served_versions_are_those_with_a_key(index: Index) -> None:
    index.set("a", "1", Entry("UNAVAILABLE", "unloaded"))
    index.set("a", "2", Entry("READY", key=7))
    index.set("b", "3", Entry("READY", key=8))
    assert index.served("a") == {"2": 7}


def test_failure_shows_its_reason_and_is_news_once(
    index: Index, shown: list[Sequence[IndexRow]]
) -> None:
    mark = (("model.onnx", 1, 1),)
    assert index.fail("a", "1", mark, ERROR)
    assert not index.fail("a", "1", mark, ERROR)
    assert shown[-1] == [IndexRow("a", "1", "UNAVAILABLE", "it is broken")]
    assert index.entry("a", "1").refused == mark


def test_failure_leaves_a_served_version_as_it_is(
    index: Index, shown: list[Sequence[IndexRow]]
) -> None:
    index.set("a", "1", Entry("READY", key=7))
    assert index.fail("a", "1", (), ERROR)
    assert index.fail("a", "", (), ERROR)
    assert shown[-1] == [IndexRow("a", "1", "READY")]


def test_forgotten_model_leaves_nothing(index: Index, shown: list[Sequence[IndexRow]]) -> None:
    index.set("a", "1", Entry("READY", key=7))
    index.forget("a")
    assert shown[-1] == []
    assert index.names() == set()
