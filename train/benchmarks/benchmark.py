"""Measures speed and memory (train/README.md): `python train/benchmarks/benchmark.py COMMAND [--output FILE.json]`."""

import msff_timm_cli.startup  # noqa: F401  isort: skip

import argparse
import inspect
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import scale
from model_speed import (
    DTYPES,
    FORMATS,
    MODES,
    PASSES,
    Case,
    check_models,
    lines,
    measure_case,
    with_interval,
)
from msff_timm import hub
from msff_timm.data.transforms import Normalize, open_image, train_transform
from msff_timm.errors import InputError, unknown
from msff_timm.files import check_file
from msff_timm.flops import measure_size
from msff_timm.results import write_json
from msff_timm.training.commands import StopRequest, peak_memory, run_command
from msff_timm.training.config import CONFIGS, DataConfig, TrainConfig, parse
from msff_timm.training.loaders import grouped
from msff_timm.training.report import markdown_table
from msff_timm.training.studies.speed import Timing, order, timed
from msff_timm.training.train import make_accelerator
from msff_timm.training.trainer import Trainer

MAX_PHOTOS = 256  # that `data` takes from a folder
CHUNK = 16  # photos in one measurement of `data`
NUM_CLASSES = 80  # of `annotations`
RESULTS = Path(__file__).parents[2] / 'hub_cards' / 'results'
IMAGE_BYTES = 13e9 / 82783  # "83K/13GB", https://cocodataset.org/#download
MODELS = ['resnet101', 'msff_resnet101', 'q2l_resnet101', 'mldecoder_resnet101']  # of `model`
EVERY_OPERATION = 'rand-m9-n2-p1-mstd0.5'
IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225), 'interpolation': 'bilinear'}

# Each runs in a Python of its own, so that a peak is of this alone. VmHWM rather than `ru_maxrss`, which Linux hands
# down from the process that started this one.
PEAK = """
import json, os, resource, sys, time
def peak_mib():
    if os.path.exists('/proc/self/status'):
        for line in open('/proc/self/status'):
            if line.startswith('VmHWM'):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
"""
LOAD = """
import msff_timm.data, datasets
before, start = peak_mib(), time.perf_counter()
rows = len(msff_timm.data.load('coco2014', 'train', sys.argv[1]))
seconds = time.perf_counter() - start
print(json.dumps({'seconds': seconds, 'peak_mib': peak_mib(), 'peak_mib_before': before, 'rows': rows}))
"""
EVALUATE = """
import numpy as np
from msff_timm.metrics import evaluate
generator, shape = np.random.default_rng(0), tuple(map(int, sys.argv[1].split('x')))
scores = generator.random(shape, dtype=np.float32)
targets = (generator.random(shape, dtype=np.float32) < 3 / shape[1]).astype(np.float32)
before, start = peak_mib(), time.perf_counter()
measures = evaluate(scores, targets)
seconds = time.perf_counter() - start
print(json.dumps({'seconds': seconds, 'peak_mib': peak_mib(), 'peak_mib_before': before, 'mAP': measures['mAP']}))
"""
IMPORT = """
start = time.perf_counter()
import timm
between = time.perf_counter()
import msff_timm
print(json.dumps({'timm': between - start, 'msff_timm': time.perf_counter() - between}))
"""
# One turn more than asked for, which is not counted: it is the one that meets what a process does once.
WAYS = """
import timm, msff_timm
from msff_timm import hub, verify
asked = json.loads(sys.argv[1])
name, repo_id, names = asked['model'], asked['repo_id'], asked['ways']
overlay = {'hf_hub_id': repo_id, 'file': None}
ways = {
    'create': lambda: timm.create_model(name),
    'read': lambda: open(asked['weights'], 'rb').read(),
    'pretrained': lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay),
    'hub.load': lambda: hub.load(f'hf-hub:{repo_id}'),
}
seconds = {way: [] for way in names}
for turn in range(asked['turns'] + 1):
    for way in names[turn % len(names):] + names[:turn % len(names)]:
        verify._digest.cache_clear()  # as in a process that loads it for the first time
        start = time.perf_counter()
        kept = ways[way]()
        seconds[way].append(time.perf_counter() - start)
        del kept
print(json.dumps({'seconds': {way: values[1:] for way, values in seconds.items()}, 'peak_mib': peak_mib()}))
"""


# Inference of one photo by all that are asked for, in turns.
LABELS = """
asked = json.loads(sys.argv[1])
sys.path.insert(0, asked['path'])
from functools import partial
import timm, torch
import msff_timm
from speed import time_in_turns
device = 'cuda' if torch.cuda.is_available() else 'cpu'
photo = torch.randn(1, 3, asked['image_size'], asked['image_size'], device=device)
photo = photo.to(memory_format=torch.channels_last)
models = [
    timm.create_model(asked['model'], **model_args).eval().to(device, memory_format=torch.channels_last)
    for model_args in asked['variants']
]
before = peak_mib()
with torch.inference_mode():
    timing = time_in_turns([partial(model, photo) for model in models], asked['turns'], 0)
gpu_peak = torch.cuda.max_memory_allocated() / 2**20 if device == 'cuda' else None
peaks = {'peak_mib': peak_mib(), 'peak_mib_before': before, 'gpu_peak_mib': gpu_peak}
print(json.dumps({'turns': timing.turns.tolist(), **peaks}))
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> None:
        raise InputError(message)


def main() -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest='command', required=True)
    data = commands.add_parser('data', help='images per second of the training transform', allow_abbrev=False)
    data.add_argument('--root', type=Path, required=True, help='folder with photos, subfolders included')
    data.add_argument('--image_size', type=int, default=448, help='side of the result in pixels')
    data.add_argument('--seconds', type=float, default=60, help='measured for at least that long')
    data.set_defaults(run=benchmark_data)
    annotations = commands.add_parser('annotations', help='loading of COCO 2014, made up', allow_abbrev=False)
    annotations.add_argument('--num_images', type=int, default=82783, help="COCO 2014's by default")
    annotations.add_argument('--num_boxes', type=int, default=604907, help="COCO 2014's by default")
    annotations.set_defaults(run=benchmark_annotations)
    metrics = commands.add_parser('metrics', help='msff_timm.metrics.evaluate', allow_abbrev=False)
    metrics.add_argument('--shapes', nargs='+', default=['40137x80', '100000x1000'], help='images x labels')
    metrics.set_defaults(run=benchmark_metrics)
    train = commands.add_parser('train', help='training of a recipe, all its settings included', allow_abbrev=False)
    train.add_argument('--steps', type=int, default=10, help='that are measured of each loop')
    train.set_defaults(run=benchmark_train)
    load = commands.add_parser('load', help='loading a model from the cache, and importing', allow_abbrev=False)
    load.add_argument('--model', default='msff_resnet101', help='registered name')
    load.add_argument('--turns', type=int, default=9, help='that each way is measured')
    load.set_defaults(run=benchmark_load)
    model = commands.add_parser('model', help='models beside each other in turns', allow_abbrev=False)
    model.add_argument('--models', nargs='+', default=MODELS, help='registered names, the first is the reference')
    model.add_argument('--image_size', type=int, default=448, help='side of the images in pixels')
    model.add_argument('--num_classes', type=int, default=80, help='labels')
    model.add_argument('--batch_sizes', type=int, nargs='+', default=[2], help='images at once')
    for name, choices in (('dtypes', DTYPES), ('formats', FORMATS), ('modes', MODES), ('passes', PASSES)):
        model.add_argument(f'--{name}', nargs='+', choices=tuple(choices), default=[next(iter(choices))])
    model.add_argument('--turns', type=int, default=15, help='that each model is measured in each case')
    model.add_argument('--profile', action='store_true', help='tell which operations take most of the time')
    model.set_defaults(run=benchmark_model)
    labels = commands.add_parser('labels', help='inference of one photo with many labels', allow_abbrev=False)
    labels.add_argument('--model', default='msff_resnet101', help='registered name')
    labels.add_argument('--image_size', type=int, default=448, help='side of the image in pixels')
    labels.add_argument('--num_classes', type=int, nargs='+', default=[80, 1000, 9600], help='numbers of labels')
    labels.add_argument('--max_queries', type=int, default=100, help='of the model, beside one for each label')
    labels.add_argument('--turns', type=int, default=9, help='that each is measured')
    labels.set_defaults(run=benchmark_labels)
    many = commands.add_parser('scale', help='training at many devices, simulated', allow_abbrev=False)
    many.add_argument('--model', default='msff_resnet101', help='registered name')
    many.add_argument('--image_size', type=int, default=448, help='side of the images in pixels')
    many.add_argument('--num_classes', type=int, default=80, help='labels')
    one_device = many.add_mutually_exclusive_group(required=True)
    one_device.add_argument('--step', type=Path, help='JSON of `model` or `train`: the speed of one device')
    one_device.add_argument('--images_per_second', type=float, help='of training on one device, an assumption')
    many.add_argument('--batch_size', type=int, help="that a device takes at once; the file's, or 16")
    many.add_argument('--devices', type=int, nargs='+', default=[8, 64, 512], help='in all')
    many.add_argument('--per_node', type=int, default=8, help='devices of a node')
    many.add_argument('--within', type=float, default=450, help="GB/s a device sends in its node: NVLink's on an H100")
    many.add_argument(
        '--between',
        type=float,
        nargs='+',
        default=[3200, 25],
        help='Gb/s a node sends to others: a card of 400 Gb/s for each of 8 GPUs, and one of 25 Gb/s in all',
    )
    many.add_argument('--latency_within', type=float, default=3, help='microseconds of a message, an assumption')
    many.add_argument('--latency_between', type=float, default=10, help='microseconds of a message, an assumption')
    many.add_argument('--data', type=Path, default=RESULTS / 'benchmark_data.json', help='JSON of `data`')
    many.add_argument('--cores_per_node', type=int, default=112, help="CPU cores: a DGX H100's")
    many.add_argument('--image_bytes', type=float, default=IMAGE_BYTES, help="mean of a file, COCO train2014's")
    many.add_argument('--num_images', type=int, default=82783, help="of an epoch, COCO train2014's")
    many.set_defaults(run=benchmark_scale)
    for command in (data, annotations, metrics, train, load, model, labels, many):
        command.add_argument('--output', type=Path, help='JSON file for the results')
    arguments, arguments.settings = parser.parse_known_args()
    if arguments.settings and arguments.command != 'train':
        raise InputError(f'unrecognized arguments: {" ".join(arguments.settings)}')
    if arguments.output:
        check_file(arguments.output, '--output')

    measured = {
        'command': arguments.command,
        'arguments': sys.argv[2:],
        **arguments.run(arguments),
        'machine': machine(),
    }
    print(', '.join(f'{key} {value}' for key, value in measured['machine'].items()))
    if arguments.output:
        write_json(measured, arguments.output)


def benchmark_data(arguments: argparse.Namespace) -> dict:
    """Measures images per second of one core, from a file to a tensor, ours beside plain torchvision.

    Plain is PIL's decoding, torchvision's `Resize`, `RandAugment()`, `ToTensor` and `Normalize`, and Cutout's hole in
    the tensor. Ours is what training does, with two strings of RandAugment:

    - `default`, that of training. timm applies each of the 2 operations with probability 0.5, so half as many.
    - `every_operation`, with probability 1: as many as torchvision applies. This one is the fair comparison.

    Both move pixels by the nearest neighbour. What differs still: torchvision's 14 operations hold `Identity`, timm's
    15 hold `Invert` and `SolarizeAdd` instead; magnitude 9 is of 30 at torchvision and of 10 at timm, so timm's move
    and change more, which costs no time; and timm varies the magnitude.

    Part of what plain loses goes to glibc, which gives the memory of a large image back to the system and asks for it
    again at the next: MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000 in the environment leave
    the difference in work.
    """
    size = arguments.image_size
    at_least(arguments, image_size=32)
    above_0(arguments, 'seconds')
    photos = find_photos(arguments.root)
    for photo in photos:  # into the system's cache, and a broken one is named before anything is measured
        open_image(photo)

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    settings = DataConfig()
    pipelines = {
        'plain': plain_pipeline(size, settings.cutout),
        'default': our_pipeline(size, settings.rand_augment, settings.cutout),
        'every_operation': our_pipeline(size, EVERY_OPERATION, settings.cutout),
    }
    rates = {name: [] for name in pipelines}
    start = time.perf_counter()
    chunk = 0
    # In turns on the same photos, each first as often as the others: what else the machine does meets all alike.
    while chunk < len(pipelines) or time.perf_counter() - start < arguments.seconds:
        batch = [photos[(chunk * CHUNK + i) % len(photos)] for i in range(CHUNK)]
        for name in order(pipelines, chunk):
            began = time.perf_counter()
            for photo in batch:
                pipelines[name](photo)
            rates[name].append(CHUNK / (time.perf_counter() - began))
        chunk += 1

    ratios = {name: np.divide(rates[name], rates['plain']) for name in ('every_operation', 'default')}
    print(f'{len(photos)} photos at {size} x {size}, one core, {chunk} turns:')
    for name in pipelines:
        print(f'{name:16} {np.median(rates[name]):8.1f} images/s')
    for name, ratio in ratios.items():
        low, median, high = np.percentile(ratio, (10, 50, 90))
        print(f'{name:16} {median:8.3f} times plain (80% of the turns from {low:.3f} to {high:.3f})')
    return {
        'num_photos': len(photos),
        'image_size': size,
        'images_per_second': {name: float(np.median(values)) for name, values in rates.items()},
        'ratio': {name: float(np.median(values)) for name, values in ratios.items()},
        'ratio_10_to_90_percent': {name: np.percentile(v, (10, 90)).tolist() for name, v in ratios.items()},
        'turns': rates,
    }


def find_photos(root: Path) -> list[Path]:
    """Lists photos of a folder and its subfolders, the same ones each time."""
    if not root.is_dir():
        raise InputError(f'--root is {root}: there is no such folder.')
    Image.init()
    photos = sorted(p for p in root.rglob('*') if p.suffix.lower() in Image.EXTENSION and p.is_file())
    if not photos:
        raise InputError(f'--root is {root}: no photo is there.')
    return random.Random(0).sample(photos, min(MAX_PHOTOS, len(photos)))


def our_pipeline(size: int, rand_augment: str | None, cutout: float) -> Callable[[Path], torch.Tensor]:
    transform = train_transform({**IMAGENET, 'input_size': (3, size, size)}, rand_augment, cutout)
    normalize = Normalize(IMAGENET)  # in training this is the device's work
    return lambda photo: normalize(transform(open_image(photo, at_least=transform.decode_size)))


def plain_pipeline(size: int, cutout: float) -> Callable[[Path], torch.Tensor]:
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.RandAugment(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET['mean'], IMAGENET['std']),
        ]
    )
    half = round(size * cutout / 2)

    def run(photo: Path) -> torch.Tensor:
        pixels = transform(Image.open(photo).convert('RGB'))
        y, x = random.randrange(size), random.randrange(size)
        pixels[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return pixels

    return run


def benchmark_annotations(arguments: argparse.Namespace) -> dict:
    """Measures loading annotations as large as COCO 2014's for the first and the second time."""
    at_least(arguments, num_images=1, num_boxes=NUM_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        file = write_annotations(Path(folder), arguments.num_images, arguments.num_boxes)
        mib = file.stat().st_size / 2**20
        print(f'{arguments.num_images} images, {arguments.num_boxes} boxes, {mib:.0f} MiB of JSON:')
        environment = {'HF_DATASETS_CACHE': str(Path(folder, 'cache'))}
        times = {turn: in_subprocess(LOAD, folder, **environment) for turn in ('first', 'second')}
    for turn, measured in times.items():
        print(
            f'{turn:8} {measured["seconds"]:8.3f} s, peak {measured["peak_mib"]:.0f} MiB,'
            f' {measured["peak_mib_before"]:.0f} MiB of it before'
        )
    return {'num_images': arguments.num_images, 'num_boxes': arguments.num_boxes, 'file_mib': mib, **times}


def write_annotations(root: Path, num_images: int, num_boxes: int) -> Path:
    """Writes made-up annotations with every key of COCO's, and empty files for the images."""
    generator = np.random.default_rng(0)
    (root / 'annotations').mkdir()
    (root / 'train2014').mkdir()
    names = [f'COCO_train2014_{image_id:012}.jpg' for image_id in range(1, num_images + 1)]
    for name in names:
        (root / 'train2014' / name).touch()
    images = (
        f'{{"license": 1, "file_name": "{name}", "coco_url": "http://images.cocodataset.org/train2014/{name}",'
        f' "height": 480, "width": 640, "date_captured": "2013-11-14 16:28:13", "flickr_url": "", "id": {i}}}'
        for i, name in enumerate(names, 1)
    )
    # 24 corners make the file about as large as COCO's
    polygons = [json.dumps([p]) for p in (generator.random((1000, 48)) * 480).round(2).tolist()]
    category_ids = generator.permutation(np.arange(num_boxes) % NUM_CLASSES + 1).tolist()  # each occurs
    image_ids = generator.integers(1, num_images + 1, num_boxes).tolist()
    boxes = (generator.random((num_boxes, 4)) * 240).round(2).tolist()
    annotations = (
        f'{{"segmentation": {polygons[i % 1000]}, "area": {round(box[2] * box[3], 2)}, "iscrowd": 0,'
        f' "image_id": {image_id}, "bbox": {box}, "category_id": {category_id}, "id": {i}}}'
        for i, (image_id, category_id, box) in enumerate(zip(image_ids, category_ids, boxes, strict=True), 1)
    )
    categories = [{'supercategory': 'thing', 'id': i, 'name': f'thing {i}'} for i in range(1, NUM_CLASSES + 1)]
    licenses = [{'url': '', 'id': 1, 'name': 'made up'}]
    head = json.dumps({'info': {'year': 2014}, 'licenses': licenses, 'categories': categories})[:-1]
    file = root / 'annotations' / 'instances_train2014.json'
    file.write_text(f'{head}, "images": [{", ".join(images)}], "annotations": [{", ".join(annotations)}]}}')
    return file


def benchmark_metrics(arguments: argparse.Namespace) -> dict:
    """Measures `msff_timm.metrics.evaluate` on scores of chance, with three labels an image."""
    for shape in arguments.shapes:
        if [size.isdecimal() and int(size) > 0 for size in shape.split('x')] != [True, True]:
            raise InputError(f'--shapes has {shape!r}: must be images x labels, 40137x80 say.')
    measured = {}
    for shape in arguments.shapes:
        measured[shape] = in_subprocess(EVALUATE, shape)
        print(
            f'{shape:14} {measured[shape]["seconds"]:8.3f} s, peak {measured[shape]["peak_mib"]:.0f} MiB,'
            f' {measured[shape]["peak_mib_before"]:.0f} MiB of it before'
        )
    return {'shapes': measured}


def benchmark_train(arguments: argparse.Namespace) -> dict:
    """Measures training with a recipe's own settings: `--config FILE` and `--key value`, as `train.py` has them.

    Three loops take the same steps in turns, each of all processes' batches: `run`, training as it is, with its loader;
    `fed`, the same on a batch that is on the device already; and `bare`, on that batch forward, backward and the
    optimizer's step alone, with the same mean loss. `run` beside `fed` shows what waiting for data costs, `fed` beside
    `bare` what else a step does: normalisation, unknown labels, clipping, the average of the weights, values read.
    """
    at_least(arguments, steps=1)
    with tempfile.TemporaryDirectory() as folder:
        default = CONFIGS / 'demo.yaml'
        config = parse(TrainConfig, [*arguments.settings, f'--output={folder}', '--trackers=[]'], default)
        accelerator = make_accelerator(config)
        trainer = Trainer(config, accelerator, StopRequest())
    trainer.prepared.train()
    accumulation_steps = trainer.data.accumulation_steps
    batches = endless(trainer)
    held = next(grouped(batches, accumulation_steps))
    pixels = [trainer.prepare_batch(batch)[0] for batch in held]
    waited = []

    def loop_run() -> None:
        began = time.perf_counter()
        group = next(grouped(batches, accumulation_steps))
        waited.append(time.perf_counter() - began)
        trainer.train_step(group)

    def loop_bare() -> None:
        for image, batch in zip(pixels, held, strict=True):
            loss = trainer.loss_fn(trainer.prepared(image), batch['target'].clamp(min=0)).mean() / accumulation_steps
            accelerator.backward(loss)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    loops = {'run': loop_run, 'fed': lambda: trainer.train_step(held), 'bare': loop_bare}
    for loop in loops.values():  # the first steps set up memory and, where it is asked for, compile
        loop()
    with FlopCounterMode(display=False) as counter:
        loop_bare()
    flops = counter.get_total_flops()
    waited.clear()
    seconds = {name: [] for name in loops}
    for turn in range(arguments.steps):
        for name in order(loops, turn):
            seconds[name].append(timed(loops[name]))

    median = {name: float(np.median(values)) for name, values in seconds.items()}
    share = float(np.median(np.divide(waited, seconds['run'])))
    overhead = float(np.median(np.divide(seconds['fed'], seconds['bare']))) - 1
    size = config.optim.batch_size
    accelerator.print(
        f'{config.model.name}, {config.data.image_size} x {config.data.image_size}, {size} images a step in'
        f' {accelerator.num_processes} process(es) on {accelerator.device.type}, {accelerator.mixed_precision}:'
    )
    for name in loops:
        accelerator.print(f'{name:5} {size / median[name]:9.2f} images/s')
    accelerator.print(
        f'waiting for data {share:.1%} of a step, the loop {overhead:+.1%} over the bare one,'
        f' {flops / median["bare"] / 1e12:.3f} TFLOP/s in each process, peak {peak_memory(accelerator) / 1e9:.1f} GB'
    )
    return {
        'model': config.model.name,
        'image_size': config.data.image_size,
        'batch_size': size,
        'passes': accumulation_steps,
        'num_processes': accelerator.num_processes,
        'device': accelerator.device.type,
        'mixed_precision': accelerator.mixed_precision,
        'compile': config.model.compile,
        'images_per_second': {name: size / value for name, value in median.items()},
        'waiting_share': share,
        'overhead': overhead,
        'flops_per_step': flops,
        'flops_per_second': flops / median['bare'],
        'peak_bytes': peak_memory(accelerator),
        'turns': seconds,
    }


def endless(trainer: Trainer) -> Iterator[dict]:
    """Gives a run's batches, epoch after epoch."""
    while True:
        yield from trainer.data.batches(trainer.progress.epoch, 0)
        trainer.progress.epoch += 1


def benchmark_load(arguments: argparse.Namespace) -> dict:
    """Measures what loading a model costs whose weights lie in the Hub's cache, and what importing this package costs.

    Four ways take turns in one process: `create`, the model with weights that are drawn; `read`, its file's bytes;
    `pretrained`, timm's `create_model(..., pretrained=True)`; and `hub.load`, which checks the configuration as well.
    Each peak of memory is that of a process which does this alone.
    """
    at_least(arguments, turns=1)
    model = hub.create(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        repo_id, cache = f'benchmark/{arguments.model}', Path(folder)
        weights = cache_model(model, cache, repo_id)
        mib = weights.stat().st_size / 2**20
        num_parameters = sum(p.numel() for p in model.parameters())
        del model
        asked = {'model': arguments.model, 'repo_id': repo_id, 'weights': str(weights)}
        environment = {'HF_HUB_CACHE': folder, 'HF_HUB_OFFLINE': '1'}

        def measure(ways: list[str], turns: int) -> dict:
            return in_subprocess(WAYS, json.dumps({**asked, 'ways': ways, 'turns': turns}), **environment)

        turns = measure(['create', 'read', 'pretrained', 'hub.load'], arguments.turns)['seconds']
        peaks = {way: measure([way], 0)['peak_mib'] for way in ('create', 'pretrained', 'hub.load')}
        imports = [in_subprocess(IMPORT, '') for _ in range(arguments.turns)]

    bound = np.add(turns['create'], turns['read'])
    ratios = {way: float(np.median(np.divide(turns[way], bound))) for way in ('pretrained', 'hub.load')}
    copies = {way: (peaks[way] - peaks['create']) / mib for way in ratios}
    median = {way: float(np.median(seconds)) for way, seconds in turns.items()}
    print(f'{arguments.model}, {num_parameters / 1e6:.1f} M parameters, {mib:.0f} MiB in the cache:')
    for way, seconds in median.items():
        print(f'{way:10} {seconds:7.3f} s' + (f', peak {peaks[way]:.0f} MiB' if way in peaks else ''))
    for way, ratio in ratios.items():
        print(f'{way:10} {ratio:7.3f} times create and read, {copies[way]:.2f} state dicts above the peak of create')
    importing = {name: float(np.median([turn[name] for turn in imports])) for name in ('timm', 'msff_timm')}
    print(f'import timm {importing["timm"]:.3f} s, then import msff_timm {1000 * importing["msff_timm"]:.0f} ms')
    return {
        'model': arguments.model,
        'num_parameters': num_parameters,
        'file_mib': mib,
        'seconds': median,
        'ratio': ratios,
        'peak_mib': peaks,
        'state_dicts_above_create': copies,
        'import_seconds': importing,
        'turns': turns,
        'import_turns': imports,
    }


def benchmark_model(arguments: argparse.Namespace) -> dict:
    """Measures models beside each other in turns: each case is one of each list of batch sizes, dtypes, formats, ...

    The first model is the reference, a plain backbone by default: what a pass takes is told as a ratio to its time, and
    FLOP/s as a share of its FLOP/s. On a GPU the peak of memory and, where that card's is known, the share of the peak
    of FLOP/s come on top.
    """
    check_models(arguments.models)
    at_least(arguments, image_size=32, num_classes=1, batch_sizes=1, turns=1)
    is_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if is_gpu else 'cpu'
    measured = {'device': device, 'threads': None if is_gpu else torch.get_num_threads(), 'cases': []}
    lists = (arguments.batch_sizes, arguments.dtypes, arguments.formats, arguments.modes, arguments.passes)
    for choice in product(*lists):
        case = Case(arguments.image_size, arguments.num_classes, *choice)
        print(f'{case}, on {device}, {arguments.turns} turns:\n', flush=True)
        measured['cases'].append(measure_case(case, arguments.models, arguments.turns, arguments.profile))
        print('\n'.join(lines(measured['cases'][-1])), flush=True)
    return measured


def benchmark_labels(arguments: argparse.Namespace) -> dict:
    """Measures inference of one photo in float32 for several numbers of labels.

    Each number is measured once with a query for each label and once with `max_queries` for groups of them, where the
    model takes that argument: in a process of its own, which its time and its peak of memory are of, and in turns
    with all others in one process, which the ratios are of.
    """
    if not timm.is_model(arguments.model):
        raise unknown('--model', arguments.model, hub.list_models())
    at_least(arguments, image_size=32, num_classes=1, max_queries=1, turns=1)
    with torch.device('meta'):
        accepted = inspect.signature(type(timm.create_model(arguments.model))).parameters
    limits = [None, arguments.max_queries] if 'max_queries' in accepted else [None]
    variants = [
        {'num_classes': number, **({} if limit is None else {'max_queries': limit})}
        for number in arguments.num_classes
        for limit in limits
    ]

    def measure(variants: list[dict]) -> dict:
        asked = {'model': arguments.model, 'image_size': arguments.image_size, 'turns': arguments.turns}
        asked |= {'variants': variants, 'path': str(Path(__file__).parent)}
        try:
            return in_subprocess(LABELS, json.dumps(asked))
        except InputError as e:  # out of memory, say: the others go on
            return {'error': str(e)}

    rows = []
    for model_args in variants:
        with torch.device('meta'):
            size = measure_size(timm.create_model(arguments.model, **model_args), (3, *2 * [arguments.image_size]))
        rows.append({**model_args, **size, **measure([model_args])})
        if 'error' not in rows[-1]:
            rows[-1]['seconds'] = float(np.median(rows[-1]['turns']))
    together = measure(variants)
    if 'error' not in together:
        timing = Timing(np.array(together['turns']), reference=0)
        for number, row in enumerate(rows):
            row['time_to_first'] = timing.compare(number, 0)
            if 'max_queries' in row:  # beside the row before: as many labels, a query for each
                row['time_to_all_queries'] = timing.compare(number, number - 1)

    print(f'{arguments.model}, one photo of {arguments.image_size} x {arguments.image_size}, float32:\n')
    head = ['labels', 'queries', 'parameters', 'GFLOPs', 'seconds', 'peak', 'of it before', 'on the GPU']
    head += ["time / the first row's", 'time / that of all queries']
    table = [
        [
            str(row['num_classes']),
            f'at most {row["max_queries"]}' if 'max_queries' in row else "the model's own",
            f'{row["num_parameters"] / 1e6:.1f} M',
            f'{row["gflops"]:.1f}',
            f'{row["seconds"]:.3f}',
            f'{row["peak_mib"]:.0f} MiB',
            f'{row["peak_mib_before"]:.0f} MiB',
            '–' if row['gpu_peak_mib'] is None else f'{row["gpu_peak_mib"]:.0f} MiB',
            with_interval(row.get('time_to_first')),
            with_interval(row.get('time_to_all_queries')),
        ]
        for row in rows
        if 'error' not in row
    ]
    print('\n'.join(markdown_table(head, table, texts=2)))
    for failed in (*rows, together):
        if 'error' in failed:
            print(failed['error'])
    return {
        'model': arguments.model,
        'image_size': arguments.image_size,
        'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        'rows': rows,
        'in_one_process': together,
    }


def benchmark_scale(arguments: argparse.Namespace) -> dict:
    """Predicts training at many devices from the speed of one: the exchange of gradients, loading, steps of an epoch.

    The gradients' order and sizes are the model's own; what `scale.py` assumes beyond the options stands there.
    """
    if not timm.is_model(arguments.model):
        raise unknown('--model', arguments.model, hub.list_models())
    at_least(arguments, image_size=32, num_classes=1, batch_size=1, devices=1, per_node=1, cores_per_node=1)
    at_least(arguments, num_images=1, latency_within=0, latency_between=0)
    above_0(arguments, 'images_per_second', 'within', 'between', 'image_bytes')
    for devices in arguments.devices:
        if devices > arguments.per_node and devices % arguments.per_node:
            raise InputError(f'--devices is {devices}: must be whole nodes of {arguments.per_node}, or fit into one.')
    if arguments.step:
        step = scale.read_step(arguments.step, arguments.model, arguments.image_size)
    else:
        step = scale.Step(16, arguments.images_per_second, 'an assumption, not measured')
    step = replace(step, batch_size=arguments.batch_size or step.batch_size)
    core_rate = read_core_rate(arguments.data, arguments.image_size)

    with torch.device('meta'):
        model = timm.create_model(arguments.model, num_classes=arguments.num_classes).train()
        images = torch.empty(step.batch_size, 3, arguments.image_size, arguments.image_size)
    gradients, forward_share = scale.arrivals(model, images)
    buckets = scale.make_buckets(gradients)
    num_bytes = sum(gradient.num_bytes for gradient in gradients)
    buffer_bytes = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    clusters = [
        scale.Cluster(
            devices,
            arguments.per_node,
            1e9 * arguments.within,
            1e9 / 8 * between,
            1e-6 * arguments.latency_within,
            1e-6 * arguments.latency_between,
        )
        for between in arguments.between
        for devices in arguments.devices
        if devices > arguments.per_node or between == arguments.between[0]  # within one node nothing goes between
    ]
    rows = scale.predict(
        gradients,
        forward_share,
        buffer_bytes,
        step,
        clusters,
        core_rate,
        arguments.cores_per_node,
        arguments.image_bytes,
        arguments.num_images,
    )
    print(
        f'{arguments.model}: {num_bytes / 1e6:.1f} MB of gradients in {len(buckets)} buckets, {buffer_bytes / 1e6:.2f}'
        f' MB of buffers, {forward_share:.0%} of the FLOPs forward.\n'
        f'One device: a step of {step.batch_size} images in {step.seconds:.3f} s, {step.images_per_second:.4g}'
        f' images/s ({step.source}).\n'
        f'One CPU core: {core_rate:.1f} images/s ({arguments.data.name}).\n'
    )
    print('\n'.join(scale.lines(rows, arguments.num_images)))
    return {
        'model': arguments.model,
        'image_size': arguments.image_size,
        'num_classes': arguments.num_classes,
        'step': {**asdict(step), 'seconds': step.seconds},
        'forward_share': forward_share,
        'gradient_bytes': num_bytes,
        'buffer_bytes': buffer_bytes,
        'buckets': [asdict(bucket) for bucket in buckets],
        'core_images_per_second': core_rate,
        'cores_per_node': arguments.cores_per_node,
        'image_bytes': arguments.image_bytes,
        'num_images': arguments.num_images,
        'rows': rows,
    }


def read_core_rate(path: Path, image_size: int) -> float:
    """Reads the images per second of one core that `data` measured of training's own transform.

    Raises:
        InputError: The file is not of `data`, or of another size of images.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        rate, measured_at = found['images_per_second']['default'], found['image_size']
    except FileNotFoundError:
        raise InputError(f'--data is {path}: there is no such file.') from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f'--data is {path}: was not written by benchmark.py data ({e!r}).') from None
    if measured_at != image_size:
        raise InputError(f'--data is {path}: was measured at {measured_at} pixels, not {image_size}.')
    return rate


def above_0(arguments: argparse.Namespace, *names: str) -> None:
    """Checks that options that are given, or all values of one that takes several, are above 0.

    Raises:
        InputError: One is not.
    """
    for name in names:
        for number in values_of(arguments, name):
            if not number > 0:
                raise InputError(f'--{name} is {number}: must be above 0.')


def at_least(arguments: argparse.Namespace, **least: float) -> None:
    """Checks that options, or all values of one that takes several, are not too small.

    Raises:
        InputError: One is.
    """
    for name, value in least.items():
        for number in values_of(arguments, name):
            if number < value:
                raise InputError(f'--{name} is {number}: must be at least {value}.')


def values_of(arguments: argparse.Namespace, name: str) -> list:
    """Lists the values of an option: several, one, or none."""
    given = getattr(arguments, name)
    return given if isinstance(given, list) else [] if given is None else [given]


def cache_model(model: torch.nn.Module, cache: Path, repo_id: str) -> Path:
    """Saves a model into a cache as huggingface_hub would after having fetched it.

    Returns:
        The weights' file.
    """
    repository = cache / f'models--{repo_id.replace("/", "--")}'
    commit = '0' * 40
    snapshot = repository / 'snapshots' / commit
    (repository / 'blobs').mkdir(parents=True)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(commit)
    hub.save(model, snapshot, list(map(str, range(model.num_classes))), timm.data.resolve_model_data_config(model))
    config, weights = snapshot / 'config.json', snapshot / 'model.safetensors'
    with weights.open('rb') as file:
        digests = {config: git_hash(config.read_bytes()), weights: sha_fileobj(file).hex()}
    for path, digest in digests.items():
        path.rename(repository / 'blobs' / digest)
        path.symlink_to(Path('..', '..', 'blobs', digest))
    return weights.resolve()


def in_subprocess(code: str, argument: str, **environment: str) -> dict:
    """Runs code that prints one line of JSON, in a Python of its own."""
    command = [sys.executable, '-c', PEAK + code, argument]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if result.returncode:
        reason = (result.stderr.strip() or 'no message; out of memory?').splitlines()[-1]
        raise InputError(f'{argument}: the measurement ended with code {result.returncode} ({reason}).')
    return json.loads(result.stdout.splitlines()[-1])


def machine() -> dict:
    """Names the processor and the versions."""
    cpu_info = Path('/proc/cpuinfo')
    models = [line for line in cpu_info.read_text().splitlines() if 'model name' in line] if cpu_info.exists() else []
    return {
        'cpu': models[0].partition(':')[2].strip() if models else platform.processor() or platform.machine(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'timm': timm.__version__,
        'pillow': Image.__version__,
        'numpy': np.__version__,
    }


if __name__ == '__main__':
    run_command(main)
