"""The demo: every recipe measured, timed and trained from the same start.

Owns: what `tied demo` tells and writes. Must not print.
"""
