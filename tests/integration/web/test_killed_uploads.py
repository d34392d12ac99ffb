"""An upload killed -9 on both sides goes on, and repeats no part: tests/faults has it at length."""

from pathlib import Path

import pytest

from tests.faults.uploads import MIB, Relay, hub, interrupted, model, push

SIZE = 22 * MIB


@pytest.mark.parametrize("side", ["client", "server"])
def test_no_byte_of_a_finished_part_is_sent_twice(tmp_path: Path, side: str) -> None:
    folder = model(tmp_path / "big", SIZE)
    settings = {"ESPALIER_PART_BYTES": str(5 * MIB)}
    with hub(tmp_path / "hub", settings) as stack, Relay(stack.port) as relay:
        walk = interrupted(stack, relay, side, lambda: push(stack, relay, folder), [0.97], SIZE)
        assert walk.repeated == [0, 0]
        stack.check(folder)
