"""What runs: the demo, the studies behind the documentation, and training on one's own data.

Owns: recipes, digits, and what `tied demo`, `matrix`, `proofs` and `train` compute. Must not print.
"""
