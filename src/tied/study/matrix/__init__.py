"""The matrix: what everyday operations leave of a tie, for every way to tie.

Owns: the rows (operations), the columns (recipes), the law that judges, and the run in processes of its own.
Must not print. Read next: `law.py` for the judgement, `study/matrix/rows` for the operations, `run.py` for the run.
"""
