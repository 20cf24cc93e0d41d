"""The words that every room shares: tensors, signatures, ports.

Called by everybody. Never imports another room, never does I/O.
"""
