"""A device is asked whether it still works, and only one that can be lost."""

import pytest
import torch

from server.bases.device_health import works_still


@pytest.mark.parametrize("broken", [False, True])
def test_a_device_works_until_it_cannot_be_waited_for(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        def synchronize(self) -> None:
            if broken:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    assert works_still(torch.device("cuda")) is not broken
    assert works_still(torch.device("cpu"))
