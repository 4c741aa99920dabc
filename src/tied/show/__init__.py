"""Pictures as bytes, made from arrays.

Owns: every use of matplotlib. Must not write files, nor know where its arrays come from.
"""
