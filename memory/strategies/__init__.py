"""One technique per file: a frozen config, the mechanism, and ``apply`` that returns its undo."""
