"""The host fixtures, for this folder only."""

from lowtide.tests.hosts.fixtures import installation, server, session_server

__all__ = ["installation", "server", "session_server"]
