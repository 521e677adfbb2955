"""Measurements that `bench_common.in_own_process` makes in a new Python process.

Imports are part of the functions: the process holds only what the function measures.
"""

import os
import time

__all__ = [
    'evaluate_random_scores',
    'import_packages',
    'infer',
    'infer_and_train',
    'load_annotations',
    'load_model',
    'load_table',
    'predict_photos',
    'set_environment',
]


def set_environment(environment: dict[str, str]) -> None:
    """Sets environment variables, before the packages that read them are imported."""
    os.environ.update(environment)


def peak_mib() -> float:
    """Returns the peak memory of this process in MiB; called before a measurement, so that its imports come first."""
    from types import SimpleNamespace

    import torch

    from msff_timm.training.commands import peak_memory

    return peak_memory(SimpleNamespace(device=torch.device('cpu'))) / 2**20


def load_annotations(root: str) -> dict:
    """Loads the training split of COCO 2014 from a folder."""
    import datasets  # noqa: F401

    import msff_timm.data

    before, start = peak_mib(), time.perf_counter()
    rows = len(msff_timm.data.load('coco2014', 'train', root))
    seconds = time.perf_counter() - start
    return {'seconds': seconds, 'peak_mib': peak_mib(), 'peak_mib_before': before, 'rows': rows}


def load_table(root: str, image_root: str) -> dict:
    """Loads the training split of a table."""
    import datasets  # noqa: F401
    import pyarrow.compute as pc

    import msff_timm.data.table

    before, start, start_cpu = peak_mib(), time.perf_counter(), time.process_time()
    dataset = msff_timm.data.load('table', 'train', root, image_root=image_root)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peaks = {'peak_mib': peak_mib(), 'peak_mib_before': before}
    labels = pc.sum(pc.list_value_length(dataset.data['labels'])).as_py()
    return {'seconds': seconds, 'cpu_seconds': cpu_seconds, **peaks, 'rows': len(dataset), 'labels': labels}


def evaluate_random_scores(num_images: int, num_classes: int) -> dict:
    """Evaluates random scores, with three labels per image on average."""
    import numpy as np

    from msff_timm.metrics import evaluate

    generator, shape = np.random.default_rng(0), (num_images, num_classes)
    scores = generator.random(shape, dtype=np.float32)
    targets = (generator.random(shape, dtype=np.float32) < 3 / num_classes).astype(np.float32)
    before, start = peak_mib(), time.perf_counter()
    mAP = evaluate(scores, targets)['mAP']
    seconds = time.perf_counter() - start
    return {'seconds': seconds, 'peak_mib': peak_mib(), 'peak_mib_before': before, 'mAP': mAP}


def import_packages() -> dict:
    """Imports timm, then msff_timm, and returns the seconds of each."""
    start = time.perf_counter()
    import timm  # noqa: F401

    between = time.perf_counter()
    import msff_timm  # noqa: F401

    return {'timm': between - start, 'msff_timm': time.perf_counter() - between}


def load_model(name: str, repo_id: str, weights: str, ways: list[str], turns: int) -> dict:
    """Loads a cached model in several ways in turns; the first turn, which also sets up the process, is not counted."""
    import timm

    from msff_timm import hub

    def read() -> bytes:
        with open(weights, 'rb') as file:
            return file.read()

    functions = {
        'create': lambda: timm.create_model(name),
        'read': read,
        'pretrained': lambda: timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={'hf_hub_id': repo_id, 'file': None}
        ),
        'hub.load': lambda: hub.load(f'hf-hub:{repo_id}'),
    }
    peak_mib()
    seconds = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            os.utime(weights)  # a changed file, so that its digest is computed as in a new process
            start = time.perf_counter()
            loaded = functions[way]()
            seconds[way].append(time.perf_counter() - start)
            del loaded
    return {'seconds': {way: values[1:] for way, values in seconds.items()}, 'peak_mib': peak_mib()}


def infer(name: str, image_size: int, turns: int, variants: list[dict]) -> dict:
    """Times inference of one image by variants of a model, each given by its arguments, in turns."""
    from functools import partial

    import timm
    import torch

    import msff_timm  # noqa: F401  registers the models
    from msff_timm.training.studies.speed import time_in_turns

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    image = torch.randn(1, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
    models = [
        timm.create_model(name, **model_args).eval().to(device, memory_format=torch.channels_last)
        for model_args in variants
    ]
    before = peak_mib()
    with torch.inference_mode():
        timing = time_in_turns([partial(model, image) for model in models], turns, reference=0)
    gpu_peak = torch.cuda.max_memory_allocated() / 2**20 if device == 'cuda' else None
    peaks = {'peak_mib': peak_mib(), 'peak_mib_before': before, 'gpu_peak_mib': gpu_peak}
    return {'turns': timing.turns.tolist(), **peaks}


def infer_and_train(name: str, image_size: int, batch_size: int) -> dict:
    """Times inference of one image and training steps of a batch with all cores; medians in seconds."""
    import msff_timm_cli.startup  # noqa: F401  isort: skip
    import torch

    from bench_model import Case, make_pass
    from msff_timm.training.loaders import num_cores
    from msff_timm.training.studies.speed import time_in_turns

    torch.set_num_threads(num_cores())

    def median(kind: str, size: int, turns: int) -> float:
        case = Case(image_size, 20, size, 'float32', 'channels_last', 'eager', kind)
        function = make_pass(name, case, torch.device('cpu'))
        return time_in_turns([function], turns, reference=0).seconds[0]

    return {'infer': median('forward', 1, 15), 'train': median('train', batch_size, 5), 'threads': num_cores()}


def predict_photos(name: str, photos: list[str], settings: dict | None) -> dict:
    """Labels photos with a loaded model: by `msff-timm predict -o` with these settings, or, for None, by `predict`.

    The labels of each photo are returned for a file only.
    """
    import json
    import tempfile
    from collections import deque
    from pathlib import Path

    import msff_timm_cli.startup  # noqa: F401  isort: skip
    import torch

    from msff_timm import hub
    from msff_timm.inference.bulk import Settings, run
    from msff_timm.inference.logits import choose_device
    from msff_timm.inference.predict import predict
    from msff_timm.inference.sources import Sources
    from msff_timm.inference.tasks import PredictTask

    model = hub.load(name).to(choose_device())
    before, start = peak_mib(), time.perf_counter()
    labels = None
    if settings is None:
        deque(predict(model, photos), maxlen=0)
        seconds = time.perf_counter() - start
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(PredictTask(model), Sources(photos), Path(folder, 'tags.jsonl'), Settings(**settings))
            seconds = time.perf_counter() - start
            with open(Path(folder, 'tags.jsonl'), encoding='utf-8') as file:
                labels = [json.loads(line)['labels'] for line in file]
    about = {'device': next(model.parameters()).device.type, 'threads': torch.get_num_threads()}
    return {'seconds': seconds, 'peak_mib': peak_mib(), 'peak_mib_before': before, **about, 'labels': labels}
