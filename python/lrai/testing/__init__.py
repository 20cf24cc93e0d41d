"""A real server for tests: ours and those of users who test their own models.

Called by tests only; nothing in the package imports it. It never replaces a part by a mock.
"""

from lrai.testing.server import ServerProcess, start_server

__all__ = ["ServerProcess", "start_server"]
