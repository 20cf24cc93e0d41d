"""The repository index: which versions are known, in which state, and why."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lrai.errors import LraiError
from lrai.registry.repository import Fingerprint


@dataclass(frozen=True)
class IndexRow:
    """One line of the index as clients see it; an empty string is left out of the answer."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """One version, served or not; one with an empty state has never been loaded."""

    state: str = ""
    reason: str = ""
    key: int | None = None
    """What the data plane calls it while it is served."""
    fingerprint: Fingerprint = ()
    """The files that are served."""
    refused: Fingerprint = ()
    """The files that failed to load since."""


class Index:
    """Keeps the entries and shows every change."""

    def __init__(self, show: Callable[[Sequence[IndexRow]], None]) -> None:
        """Begin empty; `show` gets all rows, sorted, after each change."""
        self._show = show
        self._entries: dict[tuple[str, str], Entry] = {}

    def names(self) -> set[str]:
        """Return the names of all known models."""
        return {name for name, _ in self._entries}

    def know(self, names: Iterable[str]) -> None:
        """Show models that have never been loaded, by their names alone."""
        fresh = set(names) - self.names()
        self._entries |= {(name, ""): Entry() for name in fresh}
        self._changed()

    def entry(self, name: str, version: str) -> Entry:
        """Return what is known of a version."""
        return self._entries.get((name, version), Entry())

    def served(self, name: str) -> dict[str, int]:
        """Return the served versions of a model with their keys."""
        return {
            version: entry.key
            for (model, version), entry in self._entries.items()
            if model == name and entry.key is not None
        }

    def set(self, name: str, version: str, entry: Entry) -> None:
        """Change a version's entry; a version ends what was known of the bare name."""
        if version:
            self._entries.pop((name, ""), None)
        self._entries[name, version] = entry
        self._changed()

    def fail(self, name: str, version: str, fingerprint: Fingerprint, error: LraiError) -> bool:
        """Show why a version is not served, unless former files are; return whether it is news."""
        former = self.entry(name, version)
        if former.key is not None:
            self.set(name, version, replace(former, refused=fingerprint))
            return True
        if version or not self.served(name):
            self.set(name, version, Entry("UNAVAILABLE", str(error), refused=fingerprint))
        return former.reason != str(error)

    def forget(self, name: str) -> None:
        """Drop all that is known of a model."""
        self._entries = {key: entry for key, entry in self._entries.items() if key[0] != name}
        self._changed()

    def _changed(self) -> None:
        ordered = sorted(self._entries, key=lambda key: (key[0], int(key[1] or 0)))
        rows = [(key, self._entries[key]) for key in ordered]
        self._show([IndexRow(*key, entry.state, entry.reason) for key, entry in rows])
