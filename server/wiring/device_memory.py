"""Tells what is in the memory of an engine's device. Knows no requests."""

import os
from collections.abc import Callable
from contextlib import suppress

import torch

from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.engine.kv_cache import KVCache
from server.scheduler.request import DeviceMemory


def memory_of(
    base: BaseModel, kv: KVCache, adapters: ResidentAdapters
) -> Callable[[], DeviceMemory]:
    """What tells it at any time, from any thread."""
    devices = (_name(base.device),)
    weights = sum(each.nbytes for each in (*base.model.parameters(), *base.model.buffers()))
    keys_and_values = sum(keys.nbytes + values.nbytes for keys, values in kv.layers)

    def memory() -> DeviceMemory:
        free, total = _room(base.device)
        return DeviceMemory(
            devices=devices,
            weights=weights,
            kv=keys_and_values,
            adapters=adapters.vector_bytes,
            matrices=adapters.matrix_bytes,
            total=total,
            free=free,
        )

    return memory


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return device.type


def _room(device: torch.device) -> tuple[int, int]:
    """The free and all bytes of a device of its own; zeros where it is this machine's memory."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # it has failed, which the engine notices by itself
            free, total = torch.cuda.mem_get_info(device)
            return free, total
    return 0, 0
