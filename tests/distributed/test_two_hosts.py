"""Two machines with a line of their own: it is slow, it is cut, and the training comes to the same end."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import adopted, hosts, small
from tests.support.programs import wait_for_step
from tests.support.ranks import SLOW, program
from tests.support.runs import losses
from tests.support.tiny import write_tiny_config

# Its runs need no real vocabulary.
tiny_model, undisturbed = small.tiny_model, small.undisturbed

# Machines that are silent for so long are given up.
IMPATIENT = """
from training.distributed import heartbeat
heartbeat.BEAT, heartbeat.SILENCE, heartbeat.NOTICING = 0.2, 4.0, 0.5
"""


@pytest.mark.tiny
def test_two_hosts_whose_line_was_cut_end_in_time_and_go_on_over_a_slow_one_to_the_losses_of_one(
    tmp_path, tiny_model, undisturbed, monkeypatch
):
    monkeypatch.setenv("FINETUNE_MACHINES_SECRET", "f5e91a8e2b7d4c60")
    config = write_tiny_config(tmp_path, tiny_model)
    one_row = re.sub("BATCH_SIZE = .*", "BATCH_SIZE = 1", config.read_text(encoding="utf-8"))
    config.write_text(one_row, encoding="utf-8")
    with hosts.two() as both:
        if isinstance(both, str):
            pytest.skip(f"no network namespaces here: {both}")
        common = (
            "--config",
            config,
            "--set=Hardware.NUM_MACHINES=2",
            "--set=Hardware.NUM_THREADS=1",
        )
        address = f"--set=Hardware.MAIN_PROCESS_ADDRESS={both.address(0)}:29500"

        def started(*more: str) -> list[subprocess.Popen]:
            return [
                adopted.Popen(
                    both.on(n, *program(IMPATIENT + SLOW, *common, address, *more, f"--set=Hardware.MACHINE_RANK={n}",
                                        "--output", tmp_path / f"m{n}")),
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
                for n in (0, 1)
            ]  # fmt: skip

        processes = started()
        run = wait_for_step(tmp_path / "m0", 3, processes[0])
        both.cut()
        began = time.monotonic()
        said = [one.communicate(timeout=120)[1] for one in processes]
        assert time.monotonic() - began < 60
        assert [one.returncode for one in processes] == [1, 1], said
        assert "machine 1 has not been heard of for 4 s: it is gone, or the line to it is cut" in said[0]
        assert "the checkpoint of step" in said[0] and "Traceback" not in "".join(said)

        both.mend()
        both.slow("2mbit")  # an adapter of 0.1 MB goes round twice a step
        processes = started("--resume")
        try:
            said = [one.communicate(timeout=120)[1] for one in processes]
        finally:
            for one in processes:
                one.kill()
        assert "enough" in said[0] and "the training is done; machine 0 has the adapter" in said[1], said
    between = json.loads((run / "status.json").read_text(encoding="utf-8"))["stages"]["train"]["exchange"]
    # The line was measured when they met, and not taken for a quick one.
    assert 0 < between["gbps"] < 0.1 and between["seconds"] > 0.01, between
    assert "Gbit/s measured" in said[0]
    ours, theirs = losses(Path(run)), losses(undisturbed)
    assert [ours[step] for step in theirs] == pytest.approx([theirs[step] for step in theirs], rel=1e-3)
