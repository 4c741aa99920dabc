"""What late reading needs to know of single kinds of modules.

Owns: what torch's recurrent modules do with their weights beside reading them. Must not know links, nor how a weight
is computed. Read next: `binding/late_reading.py`.
"""
