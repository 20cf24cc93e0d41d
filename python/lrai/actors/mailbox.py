"""The door to the native mailbox, through which an actor receives batches and answers them."""

from lrai import _native
from lrai._native import Batch, Mailbox

__all__ = ["Batch", "Mailbox", "open_mailbox"]


def open_mailbox(link_fd: int) -> Mailbox | None:
    """Wait until the gateway attaches its slabs; None if it closed the link instead."""
    try:
        return Mailbox(link_fd)
    except _native.NativeError:
        return None
