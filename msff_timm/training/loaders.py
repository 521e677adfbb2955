"""How many processes load images, and how many threads compute beside them, by what either has to do."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data.samples import Samples
from .engine import num_cores
from .studies.speed import wait_for_device

__all__ = ['STREAM_WORKERS', 'Shares', 'measure_shares', 'share']

STREAM_WORKERS = 4  # the order of a stream depends on their number, so that no measurement may decide it
IMAGES = 16  # that are loaded to be timed
MARGIN = 1.2  # by which a GPU's workers are to be faster than it
SHORT = 1.0  # seconds of a step with one image; a longer one is timed once


@dataclass(frozen=True)
class Shares:
    """What loading and computing are given.

    Attributes:
        workers: Number of processes that load images.
        threads: Number of PyTorch's threads; None on a GPU.
        load: Seconds that it takes to load an image.
        step: Seconds that a step takes for an image: of one core, or of the GPU.
    """

    workers: int
    threads: int | None
    load: float
    step: float

    def __str__(self) -> str:
        line = f'Loading an image takes {1000 * self.load:.1f} ms of a core, a step {1000 * self.step:.1f} ms'
        if self.threads is None:
            return f'{line} of the GPU: data.workers {self.workers}.'
        return f'{line}: data.workers {self.workers}, {self.threads} threads compute on {num_cores()} cores.'


def share(cores: int, load: float, step: float, is_gpu: bool) -> Shares:
    """Shares the cores of a process between its loader and PyTorch.

    Beside a CPU's training the loader needs `cores * load / (load + step)` cores to keep up. It gets as many workers as
    hold these, and PyTorch what that leaves in whole cores, rounded: a worker that is busy for a small share of the
    time holds up the computing for less than a core that stands idle would.

    Args:
        cores: Number of cores of this process.
        load: Seconds of a core to load an image.
        step: Seconds of a core, or of the GPU, that a step takes for an image.
        is_gpu: True where a GPU computes.
    """
    if is_gpu:
        return Shares(min(cores, max(1, math.ceil(MARGIN * load / step))), None, load, step)
    needed = cores * load / (load + step)
    return Shares(max(1, math.ceil(needed)), max(1, cores - math.floor(needed + 0.5)), load, step)


def measure_shares(
    accelerator: Accelerator, samples: Samples, step: Callable[[torch.Tensor], object], batch_size: int
) -> Shares:
    """Times some images and steps in the first process, and shares each process's cores by that.

    On a CPU it is the time of the processor that counts, in one thread, so that other programs do not decide.

    Args:
        accelerator: Its processes have the same number of cores.
        samples: Images that are to be loaded.
        step: Function of images (B, C, H, W) on the device; it must leave no trace.
        batch_size: Number of images at once.

    Raises:
        InputError: An image cannot be read.
    """
    found: list[Shares | None] = [None]
    if accelerator.is_main_process:
        is_gpu = accelerator.device.type != 'cpu'
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rows = range(0, len(samples), math.ceil(len(samples) / IMAGES))
        images = [samples[0]['image']]  # opens files, and imports what decodes them
        began = time.process_time()
        images += [samples[row]['image'] for row in rows]
        load = (time.process_time() - began) / len(rows)
        clock = time.perf_counter if is_gpu else time.process_time

        def timed(pixels: torch.Tensor) -> float:
            wait_for_device()
            began = clock()
            step(pixels)
            wait_for_device()
            return clock() - began

        size = batch_size if is_gpu else min(batch_size, 4)
        pixels = torch.stack([images[i % len(images)] for i in range(size)]).to(accelerator.device)
        seconds = timed(pixels if is_gpu else pixels[:1])  # sets up memory
        if is_gpu or seconds < SHORT:
            seconds = timed(pixels) / size
        torch.set_num_threads(threads)
        found = [share(num_cores(), load, seconds, is_gpu)]
    return broadcast_object_list(found)[0]
