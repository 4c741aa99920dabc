"""The eyes: what a model shares, read off its memory; never imports what changes models."""
