"""Retry policies."""

from umbel import Retry


def test_without_runs_left_there_is_no_delay():
    """Immediate ones first, then each pause once."""
    policy = Retry(immediate=2, delays_s=[1, 60])
    delays_s = [policy.delay_s(ValueError(), attempt) for attempt in range(1, 7)]
    assert delays_s == [0.0, 0.0, 1.0, 60.0, None, None]
    assert Retry().delay_s(ValueError(), 1) is None


def test_some_errors_are_given_up_on():
    """They and their subclasses, whatever the attempt."""
    policy = Retry(immediate=9, give_up_on=(LookupError,))
    assert policy.delay_s(KeyError(), 1) is None
    assert policy.delay_s(ValueError(), 1) == 0.0
