"""Harnesses that start, kill and hinder real processes, and count what went wrong: `python -m tests.chaos NAME`."""
