"""The door to the native mailbox, through which an actor receives batches and answers them."""

from mmap import ACCESS_READ, mmap

from lrai import _native
from lrai._native import Batch, Mailbox
from lrai.backends.base import Slabs

__all__ = ["Batch", "Mailbox", "map_slabs", "open_mailbox"]


def open_mailbox(link_fd: int) -> Mailbox | None:
    """Wait until the gateway attaches its slabs; None if it closed the link instead."""
    try:
        return Mailbox(link_fd)
    except _native.NativeError:
        return None


def map_slabs(mailbox: Mailbox) -> Slabs:
    """Map the memory that the gateway has attached, whole."""
    input_fd, output_fd = mailbox.slab_fds
    inputs, outputs = mmap(input_fd, 0, access=ACCESS_READ), mmap(output_fd, 0)
    return Slabs(memoryview(inputs), memoryview(outputs), mailbox.output_slot_bytes)
