"""Proofs that run: what the library promises, measured, each beside a control that must fail.

Owns: the proofs, one file per subject, and their run. Must not print. Read next: `proof.py` for what a proof says,
`catalogue.py` for the list, `run.py` for the run.
"""
