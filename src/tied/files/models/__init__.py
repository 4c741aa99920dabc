"""Models to files and back.

Owns: `tied.save` and `tied.load`. Must not parse or write bytes itself: reading and rewriting do.
"""
