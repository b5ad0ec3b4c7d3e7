"""Faults put into runs and downloads on purpose; `python -m tests.faults` counts which are survived."""
