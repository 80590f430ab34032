"""The replica's state machine: a table of what follows what, and the laws that no order of events may break."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.launch.transition import (
    CRASH_GRACE_S,
    CleanUp,
    Down,
    Effect,
    Event,
    Failure,
    Gone,
    Launch,
    Policy,
    Standing,
    Start,
    Stop,
    Up,
    Wait,
    Waited,
    transition,
)

POLICY = Policy(grace_s=3, restarts=3, window_s=60, backoff_s=1, backoff_max_s=3)
CRASH = Down(failure=Failure(cause="it crashed"))
CLEAN = CleanUp(grace_s=CRASH_GRACE_S)


def follow(*events: Event | tuple[float, Event]) -> tuple[Standing, tuple[Effect, ...]]:
    standing, effects = Standing(), ()
    for event in events:
        at, what = event if isinstance(event, tuple) else (0.0, event)
        standing, effects = transition(standing, what, now=at, policy=POLICY)
    return standing, effects


@pytest.mark.parametrize(
    ("events", "phase", "effects"),
    [
        ([Start()], "starting", (Launch(),)),
        ([Start(), Up()], "ready", ()),
        ([Start(), CRASH], "failed", (CLEAN,)),
        ([Start(inherited=True), CRASH], "backoff", (CLEAN, Wait(seconds=1))),
        ([Start(), Up(), CRASH], "backoff", (CLEAN, Wait(seconds=1))),
        ([Start(), Up(), CRASH, Waited()], "starting", (Launch(),)),
        ([Start(), Up(), CRASH, Waited(), CRASH], "backoff", (CLEAN, Wait(seconds=2))),
        ([Start(), Up(), CRASH, Waited(), CRASH, Waited(), CRASH], "backoff", (CLEAN, Wait(seconds=3))),
        ([Start(), Up(), CRASH, Waited(), CRASH, Waited(), CRASH, Waited(), CRASH], "failed", (CLEAN,)),
        ([Start(), Stop()], "stopping", (CleanUp(grace_s=3),)),
        ([Start(), Up(), Stop(), Gone()], "stopped", ()),
        ([Start(), Up(), CRASH, Gone(), Stop()], "stopping", (CleanUp(grace_s=3),)),
        ([Start(), CRASH, Stop()], "stopped", ()),
        ([Stop()], "stopped", ()),
        ([Start(), Stop(), CRASH, Waited(), Up()], "stopping", ()),
    ],
)
def test_what_follows(events: list[Event], phase: str, effects: tuple[Effect, ...]) -> None:
    standing, last = follow(*events)
    assert (standing.phase, last) == (phase, effects)


def test_failures_long_ago_do_not_count() -> None:
    crashes = [(at, event) for at in (0.0, 100.0, 200.0, 300.0, 400.0) for event in (Up(), CRASH, Waited())]
    standing, _ = follow(Start(), *crashes)
    assert standing.phase == "starting"
    assert standing.attempt == 6
    assert len(standing.failures) == 1


def test_giving_up_says_how_often_it_tried() -> None:
    standing, _ = follow(Start(), Up(), CRASH, Waited(), CRASH, Waited(), CRASH, Waited(), CRASH)
    assert standing.reason == "it crashed; it failed 4 times in 60 s and is given up"


def test_a_port_that_was_taken_is_tried_again_at_once_but_not_for_ever() -> None:
    taken = Down(failure=Failure(cause="in use"), port_taken=True)
    assert follow(Start(), taken)[1] == (CLEAN, Wait(seconds=0.0))
    assert follow(Start(), taken, Waited(), taken, Waited(), taken)[0].phase == "failed"
    assert follow(Start(), Up(), taken)[1] == (CLEAN, Wait(seconds=1)), "one that had its port lost it otherwise"


EVENTS = st.sampled_from([Start(), Start(inherited=True), Up(), CRASH, Waited(), Stop(), Gone()])


@given(st.lists(st.tuples(st.floats(0, 20), EVENTS), max_size=40))
def test_laws_for_any_order_of_events(steps: list[tuple[float, Event]]) -> None:
    standing, now, dirty, stopped = Standing(), 0.0, False, False
    for wait, event in steps:
        now += wait
        before = standing
        standing, effects = transition(standing, event, now=now, policy=POLICY)
        for effect in effects:
            if isinstance(effect, Launch):
                assert not dirty, "nothing is started beside what may still run"
                assert not stopped, "what was told to stop stays down"
                dirty = True
            if isinstance(effect, CleanUp):
                dirty = False
        stopped = stopped or isinstance(event, Stop)
        assert standing.attempt >= before.attempt
        assert len(standing.failures) <= POLICY.restarts + 1
        if standing.phase in ("failed", "stopped", "backoff"):
            assert not dirty
