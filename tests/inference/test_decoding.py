"""Tests of the threads and processes that decode images for bulk prediction."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from msff_timm import hub
from msff_timm.inference import bulk  # noqa: F401  used by the process that a test starts
from msff_timm.inference.bulk import Settings, run
from msff_timm.inference.decoding import map_in_threads
from msff_timm.inference.sources import Sources
from msff_timm.inference.tasks import PredictTask

pytestmark = pytest.mark.usefixtures('one_thread')


def test_map_in_threads_keeps_the_order_of_items():
    def late(item):
        time.sleep(0.02 * (item % 3 == 0))  # every third result is the last of three
        return item, threading.get_ident()

    items, threads = zip(*map_in_threads(late, range(30), 3), strict=True)
    assert items == tuple(range(30))
    assert len(set(threads)) == 3 and threading.get_ident() not in threads


def test_map_in_threads_takes_few_items_ahead():
    taken, before = [], threading.active_count()
    results = map_in_threads(str, (taken.append(n) or n for n in range(1000)), 2)
    assert [next(results) for _ in range(3)] == ['0', '1', '2']
    assert len(taken) <= 8
    results.close()
    assert len(taken) <= 8 and threading.active_count() == before


def test_map_in_threads_raises_the_error_of_an_item_in_its_place():
    before = threading.active_count()
    results = map_in_threads(lambda item: 1 // (3 - item), range(1000), 2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


@pytest.mark.parametrize(('num_threads', 'expected'), [(0, 4), (1, 4), (2, 2), (3, 1), (8, 1)])
def test_map_in_threads_shares_the_threads_of_pytorch(num_threads, expected):
    torch.set_num_threads(4)
    try:
        assert set(map_in_threads(lambda _: torch.get_num_threads(), range(20), num_threads)) == {expected}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


@pytest.fixture
def photos(tmp_path):
    folder, rng = tmp_path / 'photos', np.random.default_rng(0)
    folder.mkdir()
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f'{number:02}.png')
    (folder / '07.png').write_bytes(b'not an image')
    return folder


def predict(folder, output, workers):
    run(PredictTask(hub.load('msff_test_resnet'), scores=True), Sources([str(folder)]), output, Settings(4, workers))
    return output.read_text()


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_processes_decode_what_threads_decode(photos, method, tmp_path):
    """A model on another device takes its batches from processes; here that device is the CPU, too."""
    (tmp_path / 'decode.py').write_text(f"""
import multiprocessing, sys
from pathlib import Path
import torch.utils.data
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_decoding import bulk, predict

def refuse(*args):
    raise AssertionError('threads were used')

if __name__ == '__main__':
    multiprocessing.set_start_method({method!r})
    bulk.decodes_in_threads = lambda device: False
    bulk.map_in_threads = refuse
    predict({os.fspath(photos)!r}, Path({os.fspath(tmp_path / 'processes.jsonl')!r}), 2)
""")
    subprocess.run([sys.executable, tmp_path / 'decode.py'], check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    expected = predict(photos, tmp_path / 'threads.jsonl', 2)
    assert (tmp_path / 'processes.jsonl').read_text() == expected
    assert expected == predict(photos, tmp_path / 'alone.jsonl', 0)
    assert expected.count('cannot be read') == 1
