"""Whether a device can still be used. Knows nothing of what it was used for."""

import torch


def works_still(device: torch.device) -> bool:
    """To be asked after an error: a kernel's fault ends all that a process can do with its device,
    while memory that ran out, say, does not. Waits for what this thread has launched."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.current_stream().synchronize()
    except RuntimeError:
        return False
    return True
