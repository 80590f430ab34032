"""Each rule fires on its one example and passes its other."""

from __future__ import annotations

from collections import Counter

import pytest

from plimsoll.plan.rules import Rule, check, check_all, rules
from plimsoll.plan.rules.coresidency import GROUP_RULES, GroupRule
from plimsoll.plan.rules.examples import candidate, ledger


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_fires_on_one_example_and_passes_the_other(rule: Rule) -> None:
    fires, passes = candidate(**rule.fires), candidate(**rule.passes)
    found = {finding.rule: finding for finding in check(fires, ledger=ledger(**rule.fires))}
    assert rule.id in found
    assert found[rule.id].what and found[rule.id].fix and found[rule.id].cause and found[rule.id].source
    assert rule.id not in {finding.rule for finding in check(passes, ledger=ledger(**rule.passes))}


def test_ids_are_unique_and_every_rule_has_a_title() -> None:
    assert [rule for rule, count in Counter(rule.id for rule in rules()).items() if count > 1] == []
    assert [rule.id for rule in rules() if not rule.title] == []


@pytest.mark.parametrize("rule", GROUP_RULES, ids=lambda rule: rule.id)
def test_group_rules_fire_on_one_example_and_pass_the_other(rule: GroupRule) -> None:
    fires = [candidate(**example) for example in rule.fires]
    passes = [candidate(**example) for example in rule.passes]
    assert rule.id in {finding.rule for finding in check_all(fires)}
    assert rule.id not in {finding.rule for finding in check_all(passes)}
