"""What follows a tie outside of the model's slots: optimizers, marks of Parameters, adapters, configurations.

Owns: one file for each of these. Must not tie, untie, or read through a tie: that is `binding`'s. Read next:
`optimizers.py`.
"""
