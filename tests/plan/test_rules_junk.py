"""Whatever a user writes after a flag, the rules answer with findings and never with an exception."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.plan.rules import check, options_from_args, rules
from plimsoll.plan.rules.examples import candidate

EXAMPLES = [(rule.engine, example) for rule in rules() for example in (rule.fires, rule.passes)]
OPTIONS = sorted({name for _, example in EXAMPLES for name in example.get("options", {})})
VALUES = st.sampled_from(["", "0", "x", "1,a", ":", "99999"])
ENGINES = sorted({engine for engine, _ in EXAMPLES} - {"any"})
JUNK = st.one_of(
    st.sampled_from(["", "0", "-1", "x", "1,2", "[]", "null", '{"a": 1}', '{"num_speculative_tokens": "x"}', "9" * 30]),
    st.integers(-5, 1 << 40),
    st.floats(),
    st.booleans(),
)


@settings(max_examples=400)
@given(chosen=st.sampled_from(EXAMPLES), junk=st.data())
def test_rules_never_raise(chosen: tuple[str, dict[str, Any]], junk: st.DataObject) -> None:
    engine, example = chosen
    spoilt = {key: value for key, value in example.items() if not key.startswith("ledger")}
    for key, values in (("options", JUNK), ("env", VALUES)):
        names = st.sampled_from(sorted(example.get(key, {})) or OPTIONS)
        spoilt[key] = {**example.get(key, {}), **junk.draw(st.dictionaries(names, values, max_size=4))}
    check(candidate(**{"engine": "vllm" if engine == "any" else engine, **spoilt}))


@given(
    st.lists(
        st.one_of(st.sampled_from(["--tp", "-1", "--a=", "=", "-", "--", "--x.y", "a=b", "-O"]), st.text(max_size=5))
    )
)
def test_any_words_can_be_read(words: list[str]) -> None:
    for engine in ENGINES:
        options_from_args(engine, words)
