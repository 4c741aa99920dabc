"""What late reading does in special cases: recurrent modules, symbolic tracing.

Owns: what torch's recurrent modules do with their weights beside reading them, and what a symbolic tracer is shown.
Must not change modules, nor decide what is tied to what. Read next: `binding/late_reading.py`.
"""
