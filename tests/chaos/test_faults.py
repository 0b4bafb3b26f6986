"""Each fault under load: nothing accepted is lost, and nothing is done twice that was not hit."""

from __future__ import annotations

import pytest

from chaos import faults

FAULTS = [
    faults.kill_worker,
    faults.kill_all_workers,
    faults.kill_child,
    faults.rolling_restart,
    faults.cut_connections,
    faults.kill_broker,
    faults.freeze_broker,
]
OF_LEASES = [faults.stop_worker, faults.pause_worker]


@pytest.mark.brokers("valkey", "rabbitmq")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost(scene, fault):
    """Every job is done; once more only if the fault hit its run; its record has one outcome."""
    hold_against(scene, fault)


@pytest.mark.parametrize("fault", OF_LEASES, ids=lambda fault: fault.__name__)
def test_nothing_is_lost_with_a_lease(scene, fault):
    """The same, of faults that take a heartbeat's time: on Valkey that can be made short."""
    hold_against(scene, fault)


def hold_against(scene, fault):
    """One fault in the middle of a load."""
    scene.start_workers(2)
    with scene.load(rate_per_s=40):
        scene.more_runs(30)
        strike = fault(scene)
        scene.more_runs(30)
    tally = scene.finish()
    assert len(tally.accepted) >= 50
    assert not tally.unexplained(strike)
    assert not tally.wrong_records
    assert scene.app.app.dead_letters.count() == 0
