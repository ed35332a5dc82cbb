"""Tiny random checkpoints and their expected results; see tests/goldens/README.md."""
