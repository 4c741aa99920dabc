"""Commits: a change of modules as a whole, or not at all, also under the eyes of other threads.

Owns: what modules were before a change, putting that back, and waiting for readers. Must not know what is changed.
Read next: `transaction.py`.
"""
