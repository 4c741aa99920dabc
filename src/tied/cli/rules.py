"""`tied rules`: every code that a finding may carry.

Owns: the list and the page of one rule, as text. Must not import torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tied.cli.terminal import say

WRONG_USE = 2


def rules(code: Annotated[str, typer.Argument(metavar="CODE", help="One rule, such as TIE101.")] = "") -> None:
    """List the rules of `tied check`, or explain one."""
    from tied.checking.rules import PAGE, RULES

    if not code:
        width = max(len(rule.title) for rule in RULES.values())
        for rule in RULES.values():
            print(f"{rule.code}  {rule.severity:7}  {rule.title:{width}}  {rule.sentence}")
        return
    rule = RULES.get(code.upper())
    if rule is None:
        say(f"tied rules: there is no {code}; `tied rules` lists all")
        raise typer.Exit(WRONG_USE)
    print(f"{rule.code} {rule.title} ({rule.severity})\n\n{rule.sentence}\n\n{PAGE}#{rule.section}")
