"""What the machine did meanwhile."""

import os
import time

import made

from plimsoll.bench.report import level_json
from plimsoll.bench.sampling import Sampler


def test_samples_come_while_it_runs_and_stop_with_it() -> None:
    with Sampler([os.getpid(), 2**22 + 1], every_s=0.02) as sampler:
        time.sleep(0.2)
    count = len(sampler.samples)
    assert count >= 3
    last = sampler.samples[-1]
    assert 0 <= last.cpu_share <= 1
    assert last.ram_used_bytes > 1 << 20
    assert last.processes_bytes is not None
    assert last.processes_bytes > 1 << 20
    time.sleep(0.05)
    assert len(sampler.samples) == count


def test_the_machine_is_in_the_json_and_what_it_does_not_tell_is_null() -> None:
    machine = level_json(made.level(made.run(1)))["machine"]
    assert machine["cpu_share_mean"] == 0.5
    assert machine["gpu_used_bytes_max"] == 1 << 30
    assert machine["power_w_mean"] is None
    assert machine["joule_per_output_token"] is None
