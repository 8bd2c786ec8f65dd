"""The browser fixtures, for this folder only."""

from lowtide.tests.browser.fixtures import browser, front, nodes_2, overlay, page

__all__ = ["browser", "front", "nodes_2", "overlay", "page"]
