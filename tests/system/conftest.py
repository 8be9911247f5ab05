"""Fixtures of several files: what every user can read."""

from harness.readable import interpreter, packages

__all__ = ["interpreter", "packages"]
