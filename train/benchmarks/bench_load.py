"""Measures loading a model from the Hub's cache, and importing this package."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch.nn as nn
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from bench_common import check_at_least, in_own_process
from msff_timm import hub
from own_process import import_packages, load_model

WAYS = ['create', 'read', 'pretrained', 'hub.load']


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='msff_resnet101', help='registered name')
    parser.add_argument('--turns', type=int, default=9, help='measurements of each way')


def run(options: argparse.Namespace) -> dict:
    """Measures four ways in turns in one process, and the peak memory of each in a process of its own.

    - `create`: the model with random weights.
    - `read`: the bytes of its file.
    - `pretrained`: timm's `create_model(..., pretrained=True)`.
    - `hub.load`: the same with the checks of this package.
    """
    check_at_least(options, turns=1)
    model = hub.create(options.model)
    with tempfile.TemporaryDirectory() as folder:
        repo_id = f'benchmark/{options.model}'
        weights = cache_model(model, Path(folder), repo_id)
        mib = weights.stat().st_size / 2**20
        num_parameters = sum(p.numel() for p in model.parameters())
        del model
        environment = {'HF_HUB_CACHE': folder, 'HF_HUB_OFFLINE': '1'}

        def measure(ways: list[str], turns: int) -> dict:
            return in_own_process(load_model, options.model, repo_id, str(weights), ways, turns, **environment)

        turns = measure(WAYS, options.turns)['seconds']
        peaks = {way: measure([way], 0)['peak_mib'] for way in WAYS if way != 'read'}
        imports = [in_own_process(import_packages) for _ in range(options.turns)]

    bound = np.add(turns['create'], turns['read'])
    ratios = {way: float(np.median(np.divide(turns[way], bound))) for way in ('pretrained', 'hub.load')}
    copies = {way: (peaks[way] - peaks['create']) / mib for way in ratios}
    median = {way: float(np.median(seconds)) for way, seconds in turns.items()}
    print(f'{options.model}, {num_parameters / 1e6:.1f} M parameters, {mib:.0f} MiB in the cache:')
    for way, seconds in median.items():
        print(f'{way:10} {seconds:7.3f} s' + (f', peak {peaks[way]:.0f} MiB' if way in peaks else ''))
    for way, ratio in ratios.items():
        print(f'{way:10} {ratio:7.3f} times create and read, {copies[way]:.2f} state dicts above the peak of create')
    importing = {name: float(np.median([turn[name] for turn in imports])) for name in ('timm', 'msff_timm')}
    print(f'import timm {importing["timm"]:.3f} s, then import msff_timm {1000 * importing["msff_timm"]:.0f} ms')
    return {
        'model': options.model,
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


def cache_model(model: nn.Module, cache: Path, repo_id: str) -> Path:
    """Saves a model to a cache in the layout of huggingface_hub; returns the path of the weights."""
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
