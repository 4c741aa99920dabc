"""Proofs by training: whether a model's shared weights are one weight each, and how their uses pull.

Owns: float64 copies, the one-parameter reference, and comparing them. Must not change the model it is given.
"""
