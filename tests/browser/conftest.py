"""The browser fixtures, for this folder only."""

from lowtide.tests.browser.fixtures import (
    browser,
    calm,
    front,
    nodes_2,
    overlay,
    page,
    ran,
    told,
)

__all__ = ["browser", "calm", "front", "nodes_2", "overlay", "page", "ran", "told"]
