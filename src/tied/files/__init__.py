"""Checkpoint files: read, audited, shrunk, expanded, repaired, saved, loaded. The only code that opens them."""
