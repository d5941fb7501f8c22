"""The processes that train one network together: one alone, or as many as `torchrun` started, on one or many machines.

Every process runs the same program; what differs is `rank()`. Without torchrun all functions do nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes, and part from them in the end. After an error torchrun ends them all."""
    if "RANK" not in os.environ or dist.is_initialized():       # torchrun sets RANK
        yield
        return
    # a day: the others wait while the first process of a machine decodes a corpus
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    yield
    dist.destroy_process_group()


def rank() -> int:
    """Which process this is; the first, 0, writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Which process of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", 0))


def n_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of what each process has, without a gradient."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value / n_processes()


def from_first(value: Any) -> Any:
    """What the first process has."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]
