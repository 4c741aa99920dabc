"""Reports: what was seen, as data, and how it looks as text, HTML, SARIF and JSON.

Owns: groups, findings, rules and their layouts. Must not look at models or files: who looks fills a report.
"""
