"""Times ONNX files side by side in ONNX Runtime, e.g. the three precisions of one model."""

import argparse
from pathlib import Path

import numpy as np

from bench_common import check_at_least, with_interval
from msff_timm.errors import InputError, missing_package
from msff_timm.inference.export import read_metadata
from msff_timm.training.studies.speed import time_in_turns


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--files', nargs='+', type=Path, required=True, help='ONNX files of msff-timm export')
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--turns', type=int, default=15)
    parser.add_argument('--threads', type=int, default=0, help='threads of ONNX Runtime (default: one per core)')


def run(options: argparse.Namespace) -> dict:
    check_at_least(options, batch_size=1, turns=1, threads=0)
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise missing_package('onnxruntime', 'export') from None
    size = {tuple(read_metadata(file)['input_size']) for file in options.files}
    if len(size) > 1:
        raise InputError(f'--files have inputs of different sizes: {sorted(size)}.')
    images = np.random.default_rng(0).standard_normal((options.batch_size, *size.pop()), np.float32)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = options.threads, 3
    providers = ['CPUExecutionProvider']
    sessions = [onnxruntime.InferenceSession(file, settings, providers=providers) for file in options.files]
    calls = [lambda session=session: session.run(['logits'], {'image': images}) for session in sessions]
    timing = time_in_turns(calls, options.turns, reference=0)
    results = {}
    for number, (file, seconds) in enumerate(zip(options.files, timing.seconds, strict=True)):
        compared = timing.compare(0, number)
        found = {'num_bytes': file.stat().st_size, 'images_per_second': options.batch_size / seconds, 'speed': compared}
        results[file.name] = found
        print(
            f'{file.name}: {found["num_bytes"] / 1e6:.1f} MB, {found["images_per_second"]:.1f} images/s,'
            f' {with_interval(compared)} times the speed of {options.files[0].name}'
        )
    return {'files': results, 'onnxruntime': onnxruntime.__version__}
