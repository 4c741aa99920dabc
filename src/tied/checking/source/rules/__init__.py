"""The rules TIE6xx: each a function from one `Text` to what it finds there.

Owns: the recipes, and their words. Must not follow names itself: `checking/source/places.py` does.
"""
