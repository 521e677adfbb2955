import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Gives each of several workers its own cores: threads that wait for one another's core are many times slower."""
    worker = os.environ.get('PYTEST_XDIST_WORKER')
    if worker is not None and hasattr(os, 'sched_setaffinity'):
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
        own = cores[int(worker.removeprefix('gw')) % len(cores) :: count]
        os.sched_setaffinity(0, own)  # processes that it starts inherit them
        torch.set_num_threads(len(own))


@pytest.fixture(scope='session')
def coco_root() -> Path:
    """The folder of 256 real photos in COCO 2014's layout, where it is at hand."""
    root = Path(os.environ.get('MSFF_COCO_ROOT', ROOT.parent / 'shared' / 'data' / 'coco_mini'))
    if not root.is_dir():
        pytest.skip(f'no photos at {root}; set MSFF_COCO_ROOT')
    return root


@pytest.fixture(scope='session')
def voc_root() -> Path:
    """The folder VOCdevkit of 3,985 real photos of VOC 2012, where it is at hand."""
    root = Path(os.environ.get('MSFF_VOC_ROOT', ROOT.parent / 'shared' / 'data' / 'voc2012_subset' / 'VOCdevkit'))
    if not root.is_dir():
        pytest.skip(f'no photos at {root}; set MSFF_VOC_ROOT')
    return root


@pytest.fixture(scope='session')
def cases() -> Path:
    """The folder of small files that users of such tools have, where it is at hand."""
    root = Path(os.environ.get('MSFF_CASES_ROOT', ROOT.parent / 'shared' / 'cases'))
    if not root.is_dir():
        pytest.skip(f'no cases at {root}; set MSFF_CASES_ROOT')
    return root


@pytest.fixture(scope='module')
def one_thread():
    """Lets torch compute in one thread.

    Where cores are shared, tiny models take ten times as long in two; and logits of another process are the same to the
    last bit only if it computes with as many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def script():
    """Runs a script of `train/` in one or several processes that are ready or, on request, as a user starts it."""

    def run(
        name: str, *arguments: object, processes: int = 1, check: bool = True, as_user: bool = False
    ) -> subprocess.CompletedProcess:
        path, environment = ROOT / 'train' / name, {**os.environ, 'ACCELERATE_USE_CPU': '1'}
        if as_user or sys.platform == 'win32':  # which cannot fork
            command = [sys.executable]
            if processes > 1:
                # `--cpu --num_processes 2` silently runs one process in Accelerate 1.15.
                command += ['-m', 'accelerate.commands.launch', '--quiet', '--multi_gpu', '--mixed_precision=no']
                command += [f'--num_processes={processes}', '--main_process_port=0']
            command += [str(path), *map(str, arguments)]
            result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        else:
            import ready

            result = ready.run(path, [str(argument) for argument in arguments], processes, environment)
        assert not check or result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope='session')
def trained(script, tmp_path_factory) -> Path:
    """The folder of a short run of the demo; what it learns is of no account."""
    folder = tmp_path_factory.mktemp('trained') / 'run'
    settings = {'output': folder, 'data.train_size': 64, 'data.eval_size': 33, 'data.image_size': 64}
    settings |= {'data.workers': 1, 'optim.epochs': 2, 'optim.batch_size': 16, 'optim.warmup': 0.2}
    script('train.py', *(f'--{key}={value}' for key, value in settings.items()), as_user=True)
    return folder
