"""Faults on real processes: what was accepted is done, and what may not be done twice is not.

`harness` sends, counts and compares; `faults` are what it is put through; the tests use both with
small counts, `soak` with large ones.
"""
