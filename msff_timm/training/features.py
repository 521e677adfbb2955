"""Cached features: the feature maps of a frozen backbone, computed once for each image, to train its head on."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from io import FileIO
from itertools import chain, islice, repeat
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from ..data.samples import Samples, seeded
from ..errors import InputError, one_line
from .commands import Stopped, StopRequest
from .config import TrainConfig
from .freezing import backbone_parameters
from .loaders import make_loader
from .storage import is_shared, sync

__all__ = ['CachedSamples', 'FeatureCache', 'NotCached', 'OnMaps', 'cache_obstacles']

FORMAT = 1  # version of the files of a cache
MANIFEST = 'whole.json'  # written last
DTYPES = ('float16', 'float32')  # the first one that holds all values is used
# Random augmentations other than the horizontal flip; 0, false and null turn them off
RANDOM = ('rand_augment', 'cutout', 'mixup', 'cutmix', 'crop_scale', 'color_jitter')


def cache_obstacles(config: TrainConfig) -> list[str]:
    """Returns the settings for which an image has other maps in each epoch, or its maps are not enough."""
    data = config.data
    found = [f'data.{name} {value}' for name in RANDOM if (value := getattr(data, name))]
    if data.streaming:
        found.append('data.streaming true')
    if config.distill.teacher:
        found.append('distill.teacher')
    return found


class OnMaps(nn.Module):
    """A model that also accepts the maps of its backbone instead of images.

    Args:
        model: Model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """Computes logits (B, K) from images (B, C, H, W), or from maps of `maps_of`."""
        if isinstance(x, torch.Tensor):
            return self.model(x)
        if hasattr(self.model, 'forward_maps'):
            return self.model.forward_maps(x)
        return self.model.forward_head(x[0] if len(x) == 1 else x)


def maps_of(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Computes the maps that the head needs from images (B, C, H, W): of the backbone, or a plain model's features."""
    if hasattr(model, 'forward_maps'):
        return list(model.backbone(image)[model.head_maps])
    features = model.forward_features(image)
    return [features] if isinstance(features, torch.Tensor) else list(features)


class ToMaps(nn.Module):
    """Converts rows of a cache (B, D) to maps, in float32.

    Args:
        shapes: Shapes of the maps of one image.
        channels_last: True for maps in the channels-last memory format.
    """

    def __init__(self, shapes: list[tuple[int, ...]], channels_last: bool):
        super().__init__()
        self.shapes = shapes
        self.channels_last = channels_last

    def forward(self, rows: torch.Tensor) -> list[torch.Tensor]:
        maps = [part.unflatten(1, shape) for part, shape in zip(rows.split(self.sizes, 1), self.shapes, strict=True)]
        return [part.float().contiguous(memory_format=self._format(part)) for part in maps]

    @property
    def sizes(self) -> list[int]:
        return [prod(shape) for shape in self.shapes]

    def _format(self, part: torch.Tensor) -> torch.memory_format:
        return torch.channels_last if self.channels_last and part.ndim == 4 else torch.contiguous_format


class NotCached(Exception):
    """The maps cannot be cached; every process raises it with the same reason."""


class CachedSamples(Dataset):
    """Samples whose `image` is a row of the cache instead of pixels.

    Args:
        samples: Samples that were cached.
        rows: Maps (N, V, D) of each image, and, if V is 2, of its mirror image.
        sources: Index of the image whose maps and labels replace those of an unreadable image.
        hflip: Probability of the mirror image.
        seed: Seed of `Samples`; the draws are those of torchvision's `RandomHorizontalFlip`.
    """

    def __init__(self, samples: Samples, rows: np.ndarray, sources: dict[int, int], hflip: float, seed: int):
        self.dataset, self.targets, self.areas = samples.dataset, samples.targets, samples.areas
        self.rows = rows
        self.sources = sources
        self.hflip = hflip
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> dict:
        epoch, index = divmod(key, len(self))
        is_mirrored = False
        if self.hflip:
            with seeded(self.seed, epoch, index):
                is_mirrored = bool(torch.rand(1) < self.hflip)
        source = self.sources.get(index, index)
        return {
            'image': torch.from_numpy(np.array(self.rows[index, int(is_mirrored)])),
            'target': torch.from_numpy(self.targets[source]).float(),
            'index': source,
            'unreadable': [],
        }


class FeatureCache:
    """The maps of all images, in a folder that is removed at the end of the run. Every process calls every method.

    Args:
        accelerator: Accelerator, whose processes share the work and the folder.
        folder: Folder of the cache, which is created.
        model: Model with the frozen backbone, not prepared.
        normalize: Module that converts bytes to the model's input.
        channels_last: True for images and maps in the channels-last memory format.
        input_size: Shape of an image (C, H, W).
        parts: Samples of each part of the cache, without random augmentation.
        mirrored: Parts whose mirror images are cached too.

    Attributes:
        to_maps: Module that converts rows of the cache to maps.
        unreadable: Messages of the images that cannot be read, once the cache is filled.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        model: nn.Module,
        normalize: nn.Module,
        channels_last: bool,
        input_size: tuple[int, int, int],
        parts: dict[str, Samples],
        mirrored: tuple[str, ...] = (),
    ):
        self.accelerator = accelerator
        self.folder = folder
        self.model = model.eval()
        self.normalize = normalize
        self.channels_last = channels_last
        self.parts = parts
        self.views = {part: 1 + (part in mirrored) for part in parts}
        maps = self._compute(torch.zeros(1, *input_size, dtype=torch.uint8))
        shapes = [tuple(one.shape[1:]) for one in maps]
        self.to_maps = ToMaps(shapes, channels_last)

    def fill(self, batch_size: int, workers: int, stop: StopRequest, about: dict) -> str:
        """Computes the maps of all images, unless the folder holds them.

        Args:
            batch_size: Batch size of each process.
            workers: Number of workers of each process.
            stop: Request to stop the run.
            about: Settings that define the maps, apart from the weights of the backbone.

        Returns:
            Description of the cache, on one line.

        Raises:
            Stopped: A stop was requested.
            InputError: An image cannot be read, or its maps are not finite.
            NotCached: The disk has no room, or the files cannot be written.
        """
        start, accelerator = time.time(), self.accelerator
        if not is_shared(accelerator, self.folder):
            raise NotCached('the machines do not share the output folder')
        about = {
            **about,
            'version': FORMAT,
            'backbone': digest(self.model),
            'mixed_precision': accelerator.mixed_precision,
            'device': accelerator.device.type,
            'shapes': self.to_maps.shapes,
            'views': self.views,
        }
        about = json.loads(json.dumps(about))
        found = broadcast_object_list([self._read(about) if accelerator.is_main_process else None])[0]
        how = ', computed before'
        if found is None:
            found = self._fill(batch_size, workers, stop, about)
            how = f', computed in {time.time() - start:.0f} s'
        self.dtype, self.unreadable = found['dtype'], found['unreadable']
        self.sources = {part: {int(row): of for row, of in rows.items()} for part, rows in found['sources'].items()}
        of = ' and '.join(
            f'{len(samples)} {part} images' + ' with their mirror images' * (self.views[part] - 1)
            for part, samples in self.parts.items()
        )
        megabytes = sum(self._num_bytes(part, self.dtype) for part in self.parts) / 1e6
        return f'The feature maps of {of} are cached in {self.folder}: {megabytes:.1f} MB of {self.dtype}{how}.'

    def samples(self, part: str, hflip: float = 0.0, seed: int = 0) -> CachedSamples:
        """Returns the samples of a part; see `CachedSamples`."""
        rows = np.memmap(self._file(part), self.dtype, 'r', shape=self._shape(part))
        return CachedSamples(self.parts[part], rows, self.sources[part], hflip, seed)

    def remove(self) -> None:
        """Removes the folder."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, part: str) -> Path:
        return self.folder / f'{part}.bin'

    def _shape(self, part: str) -> tuple[int, int, int]:
        return len(self.parts[part]), self.views[part], sum(self.to_maps.sizes)

    def _num_bytes(self, part: str, dtype: str) -> int:
        return prod(self._shape(part)) * np.dtype(dtype).itemsize

    def _read(self, about: dict) -> dict | None:
        """Reads the manifest of an earlier start of the run; returns None if the cache is incomplete or of another."""
        try:
            found = json.loads((self.folder / MANIFEST).read_text(encoding='utf-8'))
            sizes = [self._file(part).stat().st_size for part in self.parts]
        except (OSError, ValueError):
            return None
        is_whole = found['about'] == about and sizes == [self._num_bytes(part, found['dtype']) for part in self.parts]
        return found if is_whole else None

    def _fill(self, batch_size: int, workers: int, stop: StopRequest, about: dict) -> dict:
        """Writes all files."""
        for dtype in DTYPES:
            problem = None
            if self.accelerator.is_main_process:
                try:
                    self._make_files(dtype)
                except OSError as e:
                    problem = e
            self._check(problem)
            if (notes := self._fill_with(dtype, batch_size, workers, stop)) is not None:
                break
        sources: dict[str, dict[int, int]] = {part: {} for part in self.parts}
        unreadable: dict[str, None] = {}  # in order
        for part, row, source, messages in gather_object(notes):
            sources[part][row] = source
            unreadable |= dict.fromkeys(messages)
        found = {'about': about, 'dtype': dtype, 'sources': sources, 'unreadable': list(unreadable)}
        if self.accelerator.is_main_process:
            path = self.folder / MANIFEST
            path.with_suffix('.new').write_text(json.dumps(found), encoding='utf-8')
            os.replace(path.with_suffix('.new'), path)
            sync(self.folder)
        return json.loads(json.dumps(found))

    def _make_files(self, dtype: str) -> None:
        """Creates files of the final sizes, if the disk has room for them."""
        for path in self.folder.iterdir():
            path.unlink()
        needed, free = sum(self._num_bytes(part, dtype) for part in self.parts), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(None, f'its disk has {free / 1e6:.1f} MB left for {needed / 1e6:.1f} MB of maps')
        for part in self.parts:
            with self._file(part).open('wb') as file:
                file.truncate(self._num_bytes(part, dtype))

    def _check(self, problem: OSError | None) -> None:
        """Raises NotCached in every process if any process has a problem."""
        reason = problem and one_line(problem)
        if found := next((text for text in gather_object([reason]) if text), None):
            raise NotCached(found)

    def _fill_with(self, dtype: str, batch_size: int, workers: int, stop: StopRequest) -> list[tuple] | None:
        """Computes this process's share of each part; returns notes on replaced images, or None if values overflow."""
        accelerator = self.accelerator
        notes: list[tuple] = []
        total, is_main = sum(map(len, self.parts.values())), accelerator.is_main_process
        with tqdm(desc='caching features', total=total, unit='img', disable=not is_main, dynamic_ncols=True) as bar:
            for part, samples in self.parts.items():
                share = ceil(len(samples) / accelerator.num_processes)
                first = accelerator.process_index * share
                mine = range(len(samples))[first : first + share]
                batches = self._rows(part, mine, dtype, batch_size, workers, notes)
                with self._file(part).open('r+b', buffering=0) as file:
                    file.seek(mine.start * (self._num_bytes(part, dtype) // len(samples)))
                    # Every process takes the same number of turns, the last ones maybe without rows: all stop together.
                    for rows in islice(chain(batches, repeat(None)), ceil(share / batch_size)):
                        problem = None if rows is None else _write(file, rows)
                        fits = rows is None or bool(np.isfinite(rows).all())
                        found = [stop.received is not None, problem is not None, not fits]
                        signs = torch.tensor(found, dtype=torch.float32, device=accelerator.device)
                        stopped, failed, too_large = accelerator.reduce(signs, 'sum').tolist()
                        if stopped:
                            raise Stopped
                        if failed:
                            self._check(problem)
                        if too_large:
                            return None
                        bar.update(min(batch_size * accelerator.num_processes, total - bar.n))
                sync(self._file(part))
        return notes

    def _rows(
        self, part: str, mine: range, dtype: str, batch_size: int, workers: int, notes: list[tuple]
    ) -> Iterator[np.ndarray]:
        """Yields the rows (B, V, D) of this process's images, and notes images that were replaced."""
        numbers = iter(mine)
        for batch in make_loader(Subset(self.parts[part], mine), batch_size, workers):
            pixels = batch['image']
            views = [pixels, pixels.flip(-1)][: self.views[part]]
            rows = torch.stack([torch.cat([m.flatten(1) for m in self._compute(view)], 1) for view in views], 1)
            finite = rows.isfinite().flatten(1).all(1).cpu()
            if not finite.all():
                index = int(batch['index'][~finite][0])
                image_id = self.parts[part].dataset[index]['image_id']
                raise InputError(f"image {image_id}: the backbone's maps are not finite; start from other weights.")
            for source, number in zip(batch['index'].tolist(), numbers, strict=False):
                if source != number:
                    notes.append((part, number, source, batch['unreadable']))
            yield rows.to(getattr(torch, dtype)).cpu().numpy()

    @torch.no_grad()
    def _compute(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        pixels = pixels.to(self.accelerator.device)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            return maps_of(self.model, self.normalize(pixels))


def _write(file: FileIO, rows: np.ndarray) -> OSError | None:
    """Writes an array; returns the error if it cannot."""
    left = np.ascontiguousarray(rows).data.cast('B')
    try:
        while left:  # an unbuffered file may write a part
            left = left[file.write(left) :]
    except OSError as e:
        return e
    return None


def digest(model: nn.Module) -> str:
    """Returns a digest of the names and bits of the backbone's weights and statistics."""
    found, names = hashlib.sha256(), {name.rpartition('.')[0] for name in backbone_parameters(model)}
    for name, tensor in model.state_dict().items():
        if name.rpartition('.')[0] in names:
            found.update(name.encode())
            found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
