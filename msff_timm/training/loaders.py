"""Loaders of batches: the order of the images, worker processes, and the CPU cores that they take."""

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from timm.data import Mixup
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..data.samples import Samples, StreamedSamples, collate
from ..errors import InputError, fault
from .config import DataConfig, OptimConfig
from .studies.speed import wait_for_device

__all__ = [
    'EpochSampler',
    'Shares',
    'Unreadable',
    'choose_workers',
    'divide_batch',
    'grouped',
    'make_loader',
    'measure_shares',
    'mix',
    'num_cores',
    'release_workers',
    'share',
    'share_cores',
]

STREAM_WORKERS = 4  # the order of a stream depends on the number of workers, so it is not measured
NUM_TIMED = 16  # images that are loaded to measure the time of loading
MARGIN = 1.2  # a GPU gets as many workers as load this many times faster than it computes
SHORT = 1.0  # seconds; a longer step with one image is timed once
MOST_UNREADABLE = 0.01  # share of the training images; more is a fault of the data set


class EpochSampler(Sampler[int]):
    """Shuffles the images in each epoch and returns whole batches, the same for any number of processes.

    A key is the number of the image plus the number of images for each earlier epoch, as `Samples` takes it.

    Args:
        num_images: Number of training images.
        batch_size: Batch size over all processes and accumulation steps.
        seed: Seed of the order.

    Attributes:
        epoch: Number of the epoch, from 0.
        start: Number of batches to leave out: those that were trained on before the run was resumed.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.num_images // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images)
        yield from (self.epoch * self.num_images + order[self.start * self.batch_size : len(self)]).tolist()


def divide_batch(optim: OptimConfig, num_images: int, num_processes: int) -> tuple[int, int]:
    """Divides the batch over the processes, and over as few accumulation steps as `max_per_process` allows.

    Returns:
        Micro-batch size, and number of accumulation steps.

    Raises:
        InputError: The batch cannot be divided, or there are fewer images than one batch.
    """
    size = optim.batch_size
    if size % num_processes:
        raise InputError(f'optim.batch_size is {size}: must be a multiple of the {num_processes} processes.')
    if num_images < size:
        raise InputError(f'optim.batch_size is {size}: there are only {num_images} training images.')
    share = size // num_processes
    most = optim.max_per_process or share
    steps = next(steps for steps in range(1, share + 1) if share % steps == 0 and share // steps <= most)
    return share // steps, steps


def grouped(batches: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Returns groups of `size` batches. An incomplete last group is left out."""
    batches = iter(batches)
    while len(group := list(islice(batches, size))) == size:
        yield group


def mix(mixup: Mixup, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes images and targets with the reversed batch; a label that is masked in either image stays masked."""
    known = (target >= 0) & (target >= 0).flip(0)
    image, mixed = mixup(image, target.clamp(min=0))
    return image, torch.where(known, mixed, -1.0)


class Unreadable:
    """Reports training images that cannot be read, each once, and ends the run if there are too many.

    Args:
        num_images: Number of training images.
        messages: Messages of earlier images, which new ones are added to.
    """

    def __init__(self, num_images: int, messages: list[str]):
        self.most = int(MOST_UNREADABLE * num_images)
        self.messages = messages

    def add(self, messages: list[str]) -> None:
        """Reports the images that are new.

        Raises:
            InputError: There are too many.
        """
        for message in messages:
            if message not in self.messages:
                self.messages.append(message)
                tqdm.write(f'skipped {message}', file=sys.stderr)
        if len(self.messages) > self.most:
            raise InputError(
                f'{len(self.messages)} training images cannot be read, over {MOST_UNREADABLE:.0%} of them'
                f' ({self.most}); the last: {self.messages[-1]} See `msff-timm data NAME --check`.'
            )

    def gather(self) -> None:
        """Adds the images of the other processes."""
        self.add([message for message in gather_object(self.messages) if message not in self.messages])


def make_loader(samples: Dataset, batch_size: int, workers: int, sampler: EpochSampler | None = None) -> DataLoader:
    """Creates a loader of batches: whole batches in the sampler's order, or all samples in their own order.

    Args:
        samples: Samples to load.
        batch_size: Number of images in a batch.
        workers: Number of worker processes.
        sampler: Sampler of training.

    Raises:
        InputError: There is no shared memory for workers.
    """
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=isinstance(samples, StreamedSamples) or sampler is not None,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(_outlive_signals, _ending()) if workers else None,
        # A generator of its own: drawing the workers' seeds would change the random state of dropout.
        generator=torch.Generator(),
    )


@cache
def _ending() -> ctypes.c_bool:
    """Returns a flag in shared memory: True once this process is about to end.

    Raises:
        InputError: There is no shared memory for workers.
    """
    context = torch.multiprocessing.get_context()
    try:
        context.Lock()  # each worker has several
        return context.RawValue(ctypes.c_bool, False)
    except OSError as e:
        raise InputError(fault(e)) from e


def _outlive_signals(ending: ctypes.c_bool, worker: int) -> None:
    """Makes a worker ignore signals that are sent to all processes of a run, until its own process ends.

    With PyTorch's handler, the worker would end at once, and the process with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: ending.value and os._exit(0))


def release_workers() -> None:
    """Lets workers end on SIGTERM: this process is about to end."""
    if _ending.cache_info().currsize:
        _ending().value = True


# Cores


def num_cores() -> int:
    """Returns the number of CPU cores for this process and its workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def share_cores(accelerator: Accelerator, workers: int) -> None:
    """Gives PyTorch the CPU cores that the workers leave, if it computes on the CPU.

    `accelerate launch` would give it one core, and PyTorch would take all of them: with the workers, more threads than
    cores, which wait for each other at the end of every parallel region.
    """
    if accelerator.device.type == 'cpu':
        torch.set_num_threads(max(1, num_cores() - workers))


@dataclass(frozen=True)
class Shares:
    """Division of the cores between loading and computing.

    Attributes:
        workers: Number of worker processes.
        threads: Number of PyTorch threads; None on a GPU.
        load: Seconds of a core to load an image.
        step: Seconds of a core, or of the GPU, to train on an image.
    """

    workers: int
    threads: int | None
    load: float
    step: float

    def __str__(self) -> str:
        line = f'Loading an image takes {1000 * self.load:.1f} ms of a core, a step {1000 * self.step:.1f} ms'
        if self.threads is None:
            return f'{line} of the GPU: data.workers {self.workers}.'
        return f'{line}: data.workers {self.workers}, {self.threads} compute threads on {num_cores()} cores.'


def share(cores: int, load: float, step: float, is_gpu: bool) -> Shares:
    """Divides the cores of a process between its workers and PyTorch.

    To keep up with training on the CPU, loading needs `cores * load / (load + step)` cores. The number of workers is
    that number rounded up; PyTorch gets the remaining cores, rounded to the nearest: a worker that is busy for a small
    share of the time costs less than an idle core.

    Args:
        cores: Number of cores of this process.
        load: Seconds of a core to load an image.
        step: Seconds of a core, or of the GPU, to train on an image.
        is_gpu: True if a GPU computes.
    """
    if is_gpu:
        return Shares(min(cores, max(1, math.ceil(MARGIN * load / step))), None, load, step)
    needed = cores * load / (load + step)
    return Shares(max(1, math.ceil(needed)), max(1, cores - math.floor(needed + 0.5)), load, step)


def measure_shares(
    accelerator: Accelerator, samples: Samples, step: Callable[[torch.Tensor], object], batch_size: int
) -> Shares:
    """Divides the cores by the times of loading and training on the first process.

    On a CPU, processor time in one thread is measured: other programs do not affect it.

    Args:
        accelerator: Accelerator, whose processes have the same number of cores.
        samples: Training images.
        step: Function of images (B, C, H, W) on the device, without side effects.
        batch_size: Micro-batch size.

    Raises:
        InputError: An image cannot be read.
    """
    found: list[Shares | None] = [None]
    if accelerator.is_main_process:
        is_gpu = accelerator.device.type != 'cpu'
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rows = range(0, len(samples), math.ceil(len(samples) / NUM_TIMED))
        images = [samples[0]['image']]  # opens files and imports decoders
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
        seconds = timed(pixels if is_gpu else pixels[:1])  # allocates memory
        if is_gpu or seconds < SHORT:
            seconds = timed(pixels) / size
        torch.set_num_threads(threads)
        found = [share(num_cores(), load, seconds, is_gpu)]
    return broadcast_object_list(found)[0]


def choose_workers(
    data: DataConfig,
    accelerator: Accelerator,
    samples: Samples | None,
    step: Callable[[torch.Tensor], object],
    batch_size: int,
    threads: int | None,
) -> None:
    """Sets `data.workers` and PyTorch's threads by the time of loading and training.

    Args:
        data: Settings of the data.
        accelerator: Accelerator of this process.
        samples: Training samples; None for a stream.
        step: Function of images (B, C, H, W) on the device, without side effects.
        batch_size: Micro-batch size.
        threads: Number of threads of the run that is resumed, which decides the last bits; None to choose it.
    """
    if samples is None:
        data.workers = STREAM_WORKERS
        share_cores(accelerator, data.workers)
        return
    shares = measure_shares(accelerator, samples, step, batch_size)
    data.workers = shares.workers
    accelerator.print(shares)
    if shares.threads is not None:
        torch.set_num_threads(min(threads or shares.threads, num_cores()))
