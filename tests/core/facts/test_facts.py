"""What the kernel of October 2005 does, fact by fact: the programs of the .facts files come out as they say.

The profile is swap-v3: Linux 2.6.14-rc4-mm1 with "Swap migration V3"; what that series leaves alone is as in 2.6.15.
"""

from pathlib import Path

import pytest

from .language import Case, read_facts
from .story import SEEDS, Story

FACTS = {path.name: read_facts(path) for path in sorted(Path(__file__).parent.glob("*.facts"))}
CASES = [case for facts in FACTS.values() for fact in facts for case in fact.cases]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fact(case: Case) -> None:
    """The kernel does what the fact says."""
    at_once = any(statement.left.startswith("together ") for statement in case.program)
    for seed in range(1, SEEDS + 1) if at_once else [None]:
        Story(case, seed).run()
