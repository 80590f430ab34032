"""Each rule fires on its one example and passes its other."""

from __future__ import annotations

from collections import Counter

import pytest

from plimsoll.plan.rules import Rule, rules
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.examples import candidate


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_fires_on_one_example_and_passes_the_other(rule: Rule) -> None:
    from plimsoll.plan.rules import check

    fires, passes = candidate(**rule.fires), candidate(**rule.passes)
    found = {finding.rule: finding for finding in check(fires)}
    assert rule.id in found
    assert found[rule.id].what and found[rule.id].fix and found[rule.id].cause and found[rule.id].source
    assert rule.id not in {finding.rule for finding in check(passes)}
    assert rule.check(Case(candidate=fires))


def test_ids_are_unique_and_every_rule_has_a_title() -> None:
    assert [rule for rule, count in Counter(rule.id for rule in rules()).items() if count > 1] == []
    assert [rule.id for rule in rules() if not rule.title] == []
