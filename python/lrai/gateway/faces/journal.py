"""Where durable requests are kept, in the data plane's words."""

from typing import Any

from lrai.config import Settings


def journal_config(settings: Settings) -> dict[str, Any]:
    """Return the data plane's settings of the journal; no place = there is none."""
    journal, place = settings.journal, settings.journal.place
    if place == "auto":
        place = "sqlite" if settings.server.state else "off"
    if place == "sqlite":
        place = f"sqlite:{settings.server.state_folder()}"
    return {
        "journal": "" if place == "off" else place,
        "journal_max_bytes": journal.max_bytes,
        "journal_keep_ms": round(journal.keep_s * 1e3),
        "journal_patience_ms": round(journal.patience_s * 1e3),
        "webhooks": journal.webhooks,
    }
