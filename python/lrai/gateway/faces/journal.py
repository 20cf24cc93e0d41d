"""Where durable requests are kept, in the data plane's words."""

from typing import Any

from lrai.config import Settings


def journal_config(settings: Settings) -> dict[str, Any] | None:
    """Return the data plane's settings of the journal; None = there is none."""
    journal, place = settings.journal, settings.journal.place
    if place == "auto":
        place = "sqlite" if settings.server.state else "off"
    if place == "sqlite":
        place = f"sqlite:{settings.server.state_folder()}"
    if place == "off":
        return None
    return {
        "place": place,
        "max_bytes": journal.max_bytes,
        "keep_ms": round(journal.keep_s * 1e3),
        "patience_ms": round(journal.patience_s * 1e3),
        "webhooks": journal.webhooks,
    }
