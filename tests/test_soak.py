"""The short form of soak.py, which has the long one."""

import pytest
from soak import soak


@pytest.mark.slow
def test_a_training_that_is_killed_three_times_ends_in_the_same_bytes(tmp_path):
    counts = soak(tmp_path, kills=3, seed=16, verbs=("prune",))
    assert counts["differences"] == []
    assert counts["kills"] == sum(counts["killed_in"].values()) == 3
    assert counts["files_compared"] > 20
