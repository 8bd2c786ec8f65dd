"""The bench and the demo: measure the levels on whatever device there is."""
