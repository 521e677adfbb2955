"""Faults of the machine as one line: real ones, as far as a test can cause them."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from msff_timm import errors
from msff_timm.errors import InputError, exit_code, fault


class Killed(Dataset):
    """Its worker is killed as the second batch is made."""

    def __len__(self):
        return 4

    def __getitem__(self, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(2)


def raised(act):
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


def in_worker(act):
    """Raises an error as a loader does whose worker has raised it."""

    def fetched():
        try:
            act()
        except Exception:
            wrapper = ExceptionWrapper(where='in DataLoader worker process 0')
        wrapper.reraise()

    return fetched


def raising(error):
    def act():
        raise error

    return act


CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
SHM = 'unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)'
BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of"
MEMORY = 'use smaller batches or images, fewer workers, or a machine with more memory.'


@pytest.mark.parametrize(
    ('act', 'start', 'end'),
    [
        (lambda: open('/proc/none/x', 'w'), '/proc/none/x: No such file or directory; ', 'check that it is there.'),
        (lambda: open('/dev/null/x'), '/dev/null/x: Not a directory; ', 'check the path.'),
        (lambda: os.mkdir('/tmp'), '/tmp: File exists; ', 'check the path.'),
        (lambda: open('/tmp/' + 'a' * 300), '/tmp/aaa', 'File name too long; choose a shorter name.'),
        (lambda: open(b'/proc/none'), '/proc/none: No such', 'check that it is there.'),
        (raising(OSError(errno.ENOSPC, 'full', '/x')), '/x: No space left on device; make room', 'place.'),
        (raising(OSError(errno.EROFS, 'ro', '/x')), '/x: Read-only file system; ', 'choose another place.'),
        (raising(OSError(errno.EACCES, 'no', '/x')), '/x: Permission denied; ', 'or change its permissions.'),
        (raising(OSError(errno.EMFILE, 'many', '/x')), '/x: Too many open files; ', 'or use fewer workers.'),
        (raising(OSError(errno.ENOSPC, 'full')), 'No space left on device; ', 'choose another place.'),
        (in_worker(raising(OSError(errno.ENOSPC, 'full', '/x'))), '/x: No space left on device; ', 'another place.'),
        (lambda: save_file({'a': torch.zeros(1)}, '/proc/none/x'), '/proc/none/', 'check that it is there.'),
        (lambda: np.zeros(2**50), 'memory ran out (Unable to allocate', MEMORY),
        (lambda: torch.zeros(2**50), 'memory ran out (', MEMORY),
        (lambda: bytearray(2**60), 'memory ran out; ', MEMORY),
        (in_worker(raising(MemoryError())), 'memory ran out; ', MEMORY),
        (in_worker(raising(RuntimeError(f'{CPU} 4 bytes.'))), f'memory ran out ({CPU}', MEMORY),
        (raising(torch.OutOfMemoryError('CUDA out of memory. Tried')), 'the memory of the GPU is too', 'images.'),
        (raising(RuntimeError("can't start new thread")), 'no thread can be started', 'or use fewer workers.'),
        (in_worker(raising(RuntimeError(SHM))), 'the workers of the loader need more shared', 'data.workers to 0.'),
        (raising(RuntimeError(BUS)), 'the workers of the loader need more shared', 'data.workers to 0.'),
        (lambda: list(DataLoader(Killed(), 2, num_workers=1)), 'a worker of the loader was killed', 'memory.'),
    ],
)  # fmt: skip
def test_fault_says_what_where_and_how_to_fix_it(act, start, end):
    line = fault(raised(act))
    assert line.startswith(start) and line.endswith(end) and '\n' not in line and 'Traceback' not in line


@pytest.mark.parametrize(
    'act',
    [
        lambda: {}['a'],
        lambda: None + 1,
        lambda: torch.zeros(2) + torch.zeros(3),
        in_worker(lambda: None + 1),
        lambda: os.read(10_000, 1),  # EBADF
        raising(OSError('image file is truncated')),
        raising(AssertionError('out of memory')),
    ],
)
def test_fault_leaves_other_errors_to_their_tracebacks(act):
    error = raised(act)
    assert fault(error) is None
    with pytest.raises(type(error)):
        exit_code(act, 'name')


@pytest.mark.parametrize(
    ('act', 'code', 'line'),
    [
        (lambda: None, 0, ''),
        (lambda: 1, 1, ''),
        (raising(InputError('a is b.')), 2, 'name: error: a is b.\n'),
        (raising(InputError('a\n is\rb.')), 2, 'name: error: a is b.\n'),
        (in_worker(raising(InputError('a is b.'))), 2, 'name: error: a is b.\n'),
        (raising(OSError(errno.EIO, '', 'x')), 2, 'name: error: x: Input/output error; check the disk.\n'),
        (raising(KeyboardInterrupt()), 130, ''),
    ],
)
def test_exit_code_ends_with_one_line(act, code, line, capsys):
    assert exit_code(act, 'name') == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(('shell', 'code', 'line'), [
    ('{} | true', 141, ''),
    ('{} > /dev/full', 2, 'name: error: No space left on device; make room there, or choose another place.\n'),
])  # fmt: skip
def test_exit_code_where_nothing_takes_the_output(shell, code, line):
    where = Path(errors.__file__).parent  # alone it is imported in no time
    script = f'import sys; sys.path.insert(0, "{where}"); from errors import exit_code;'
    script += 'sys.exit(exit_code(lambda: print("a" * 100_000), "name"))'
    command = shell.format(f"'{sys.executable}' -c '{script}'") + '; exit ${PIPESTATUS[0]}'
    ended = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, line)


def test_fault_of_a_worker_that_is_gone_as_its_batch_is_fetched():
    """Which of two errors comes up first depends on the moment: the connection's own is EOFError or another."""
    scope = {}
    exec(compile('def detach():\n    raise EOFError', '/lib/multiprocessing/resource_sharer.py', 'exec'), scope)
    assert fault(raised(scope['detach'])).startswith('a worker of the loader was killed')
    assert fault(EOFError()) is None
    exec(compile('def lock():\n    raise OSError(28, "full")', '/lib/multiprocessing/synchronize.py', 'exec'), scope)
    assert fault(raised(scope['lock'])).startswith('the workers of the loader need more shared memory (full)')
