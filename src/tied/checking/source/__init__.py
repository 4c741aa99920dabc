"""Source code: the wrong ways to share weights, found in text, which is neither imported nor run.

Owns: reading Python files, following names in them, and the rules TIE6xx. Must not import torch, nor the code that it
looks at; where a name leads nowhere that is known, it says nothing. Read next: `look.py`.
"""
