"""The commands for many images: `predict -o`, `embed`, `similar`."""

import argparse
import json
import logging
from collections.abc import Callable

from msff_timm import hub
from msff_timm.errors import InputError, missing_package
from msff_timm.inference import bulk
from msff_timm.inference.logits import choose_device
from msff_timm.inference.sources import Sources
from msff_timm.inference.tasks import EmbedTask, PredictTask
from msff_timm.inference.team import Team

__all__ = ['check_printed', 'embed', 'predict', 'similar']

log = logging.getLogger('msff_timm.cli')

# Options of `predict` that need `--output`, with their defaults
WITH_OUTPUT = {
    'scores': False,
    'flip': False,
    'compile': False,
    'sidecar': None,
    'batch_size': None,
    'workers': None,
    'precision': 'fp32',
    'full_decode': False,
    'image_column': None,
    'image_root': None,
    'split': None,
}


def check_printed(args: argparse.Namespace) -> None:
    """Checks the options of `predict` without `--output`.

    Raises:
        InputError: An option needs `--output`.
    """
    for name, value in WITH_OUTPUT.items():
        if getattr(args, name) != value:
            raise InputError(f'--{name.replace("_", "-")} is for results in a file: add -o FILE.')


def predict(args: argparse.Namespace, load_model: Callable) -> int:
    """Runs `predict` with `--output`; returns its exit code."""
    if args.json:
        raise InputError('--json prints, and -o writes: give -o FILE.jsonl for JSON in a file.')
    return _run(args, load_model, lambda model: PredictTask(model, args.threshold, args.top_k, args.scores, args.flip))


def embed(args: argparse.Namespace, load_model: Callable) -> int:
    """Runs `embed`; returns its exit code."""
    args.compile, args.sidecar = False, None
    return _run(args, load_model, EmbedTask)


def _run(args: argparse.Namespace, load_model: Callable, make_task: Callable) -> int:
    team = Team()  # before the model, whose GPU it chooses
    if team.rank:
        logging.getLogger('msff_timm').setLevel(logging.ERROR)
    settings = bulk.Settings(
        args.batch_size, args.workers, args.precision, args.compile, args.full_decode, args.sidecar
    )
    sources = Sources(args.images, True, args.image_column, args.image_root, args.split)
    task = make_task(load_model(args))
    task.header['model'] = args.model or hub.DEFAULT_MODEL
    try:
        summary = bulk.run(task, sources, args.output, settings, team)
    except ModuleNotFoundError as e:
        raise missing_package(e.name, 'bulk') from None
    if team.rank:
        return 0
    rate = f' ({summary.num_computed / summary.seconds:.1f} images/s)' if summary.num_computed else ''
    print(f'{args.output}: {summary.num_images:,} images{rate}')
    if summary.num_unreadable:
        log.error('%d of %d images could not be read.', summary.num_unreadable, summary.num_images)
    return 1 if summary.num_unreadable else 0


def similar(args: argparse.Namespace, load_model: Callable) -> None:
    """Runs `similar`."""
    try:
        from msff_timm.inference.similar import Embeddings
    except ModuleNotFoundError as e:
        raise missing_package(e.name, 'bulk') from None

    embeddings = Embeddings(args.embeddings)
    if args.near_duplicates is not None:
        found = embeddings.near_duplicates(args.near_duplicates, choose_device(args.device))
        rows = [{'image': image, 'similar': other, 'similarity': value} for image, other, value in found]
    else:
        vector = embeddings.find(args.image)
        if vector is None:
            args.model = args.model or embeddings.header['model']
            vector = embeddings.embed(load_model(args), args.image)
        rows = [{'image': image, 'similarity': value} for image, value in embeddings.nearest(vector, args.k)]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f'{row["similarity"]:.3f}', row['image'], *([row['similar']] if 'similar' in row else []), sep='  ')
    if args.near_duplicates is not None:
        log.info('%d of %d images are near-duplicates of an earlier one.', len(rows), len(embeddings.images))
