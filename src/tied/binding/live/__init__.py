"""Live slots: what an identity tie is, as long as its source holds an ordinary tensor.

Owns: the states of a slot, the dict that is judged by them, and what torch reports of registrations. Must not know how
a source is found, nor how a transform is read. Read next: `states.py`.
"""
