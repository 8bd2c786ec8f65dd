"""The ladder of a rescue, and which errors it is for."""

import pytest
import torch
from lowtide.memory.rescue import TRIES, is_out_of_memory, ladder


def test_each_rung_saves_more_than_the_one_before():
    rungs = list(ladder())
    assert [rung.name for rung in rungs] == ["free", "tile", "stream", "stream everything"]
    assert len(rungs) == TRIES
    assert rungs[0].config is None
    assert [rung.config.offload for rung in rungs[1:]] == ["component", "sequential", "group"]


def test_no_rung_changes_what_weights_are_stored_in_or_cleans_up_by_itself():
    for rung in ladder():
        if rung.config is not None:
            assert not rung.config.fp8_storage
            assert rung.config.cleanup == "off"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_only_a_devices_memory_counts(error, expected):
    assert is_out_of_memory(error) is expected
