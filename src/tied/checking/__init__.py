"""The eyes: what a model shares, read off its memory; never imports what changes models.

Nothing is imported here, so that `tied rules` answers without torch. Read next: `check.py`.
"""
