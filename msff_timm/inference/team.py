"""The processes that share a command: one, or those that `accelerate launch` or `torchrun` has started."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

__all__ = ['Team']

T = TypeVar('T')
LONGEST = timedelta(days=365)  # that a process waits for slower ones; a launcher stops all if one fails


class Team:
    """The processes of a command, which launchers describe in environment variables.

    Attributes:
        rank: Number of this process.
        size: Number of processes on all machines.
        local_rank: Number of this process on its machine, and of its GPU.
        local_size: Number of processes on this machine.
    """

    def __init__(self):
        names = {'RANK': 0, 'WORLD_SIZE': 1, 'LOCAL_RANK': 0, 'LOCAL_WORLD_SIZE': 1}
        self.rank, self.size, self.local_rank, self.local_size = (
            int(os.environ.get(name, default)) for name, default in names.items()
        )
        if self.size > 1:
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
            dist.init_process_group('gloo', timeout=LONGEST)

    def first(self, function: Callable[[], T]) -> T:
        """Calls a function in the first process; all processes return its JSON result, or end after its error."""
        found, problem = [None, None], None
        if self.rank == 0:
            try:
                found[0] = function()
            except BaseException as e:
                problem = e
                found[1] = type(e).__name__
        if self.size > 1:
            dist.broadcast_object_list(found)
        if problem is not None:
            raise problem
        if found[1] is not None:
            sys.exit(2)  # the first process reports the error
        return found[0]

    def wait(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()
