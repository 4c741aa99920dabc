"""`tied rules`: every code that a finding may carry.

Owns: the list and the page of one rule, as text. Must not import torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tied.cli.terminal import say

WRONG_USE = 2


def rules(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A rule, such as TIE101, or a beginning: TIE1.")] = "",
) -> None:
    """List the rules of `tied check`, or explain one."""
    from tied.reporting.rules import PAGE, RULES

    rule, some = RULES.get(code.upper()), [r for r in RULES.values() if r.code.startswith(code.upper())]
    if not some:
        say(f"tied rules: there is no {code}; `tied rules` lists all")
        raise typer.Exit(WRONG_USE)
    if rule is None:
        width = max(len(one.title) for one in some)
        for one in some:
            print(f"{one.code}  {one.severity:7}  {one.title:{width}}  {one.sentence}")
        return
    print(f"{rule.code} {rule.title} ({rule.severity})\n\n{rule.sentence}\n\n{PAGE}#{rule.section}")
