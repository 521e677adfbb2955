"""Faults of the machine as one line: real faults, as far as a test can cause them."""

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
from msff_timm.errors import InputError, exit_code, fault, missing_package, one_line, unknown


class Killed(Dataset):
    """Kills its worker while the second batch is fetched."""

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
    """Returns a function that raises an error the way a loader re-raises the error of its worker."""

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
        (lambda: open('/proc/none/x', 'w'), '/proc/none/x: No such file or directory; ', 'check the path.'),
        (lambda: open('/dev/null/x'), '/dev/null/x: Not a directory; ', 'check the path.'),
        (lambda: os.mkdir('/tmp'), '/tmp: File exists; ', 'check the path.'),
        (lambda: open('/tmp/' + 'a' * 300), '/tmp/aaa', 'File name too long; choose a shorter name.'),
        (lambda: open(b'/proc/none'), '/proc/none: No such', 'check the path.'),
        (raising(OSError(errno.ENOSPC, 'full', '/x')), '/x: No space left on device; make room', 'place.'),
        (raising(OSError(errno.EROFS, 'ro', '/x')), '/x: Read-only file system; ', 'choose another place.'),
        (raising(OSError(errno.EACCES, 'no', '/x')), '/x: Permission denied; ', 'or change its permissions.'),
        (raising(OSError(errno.EMFILE, 'many', '/x')), '/x: Too many open files; ', 'or use fewer workers.'),
        (raising(OSError(errno.ENOSPC, 'full')), 'No space left on device; ', 'choose another place.'),
        (in_worker(raising(OSError(errno.ENOSPC, 'full', '/x'))), '/x: No space left on device; ', 'another place.'),
        (lambda: save_file({'a': torch.zeros(1)}, '/proc/none/x'), '/proc/none/', 'check the path.'),
        (lambda: np.zeros(2**50), 'memory ran out (Unable to allocate', MEMORY),
        (lambda: torch.zeros(2**50), 'memory ran out (', MEMORY),
        (lambda: bytearray(2**60), 'memory ran out; ', MEMORY),
        (in_worker(raising(MemoryError())), 'memory ran out; ', MEMORY),
        (in_worker(raising(RuntimeError(f'{CPU} 4 bytes.'))), f'memory ran out ({CPU}', MEMORY),
        (raising(torch.OutOfMemoryError('CUDA out of memory. Tried')), 'GPU memory ran out', 'images.'),
        (raising(RuntimeError("can't start new thread")), 'no thread can be started', 'or use fewer workers.'),
        (in_worker(raising(RuntimeError(SHM))), 'the data loader workers need more shared', 'data.workers to 0.'),
        (raising(RuntimeError(BUS)), 'the data loader workers need more shared', 'data.workers to 0.'),
        (lambda: list(DataLoader(Killed(), 2, num_workers=1)), 'a data loader worker was killed', 'memory.'),
    ],
)  # fmt: skip
def test_fault_names_cause_place_and_fix(act, start, end):
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
def test_fault_returns_none_for_other_errors(act):
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
def test_exit_code_reports_one_line(act, code, line, capsys):
    assert exit_code(act, 'name') == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(('shell', 'code', 'line'), [
    ('{} | true', 141, ''),
    ('{} > /dev/full', 2, 'name: error: No space left on device; make room there, or choose another place.\n'),
])  # fmt: skip
def test_exit_code_handles_output_that_cannot_be_written(shell, code, line):
    where = Path(errors.__file__).parent  # imported alone, without PyTorch
    script = f'import sys; sys.path.insert(0, "{where}"); from errors import exit_code;'
    script += 'sys.exit(exit_code(lambda: print("a" * 100_000), "name"))'
    command = shell.format(f"'{sys.executable}' -c '{script}'") + '; exit ${PIPESTATUS[0]}'
    ended = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, line)


def test_fault_recognises_a_lost_worker_by_its_traceback():
    """Depending on timing, the error of the connection to a worker that was killed comes first."""
    scope = {}
    exec(compile('def detach():\n    raise EOFError', '/lib/multiprocessing/resource_sharer.py', 'exec'), scope)
    assert fault(raised(scope['detach'])).startswith('a data loader worker was killed')
    assert fault(EOFError()) is None
    exec(compile('def lock():\n    raise OSError(28, "full")', '/lib/multiprocessing/synchronize.py', 'exec'), scope)
    assert fault(raised(scope['lock'])).startswith('the data loader workers need more shared memory (full)')


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError(' a\n  b\tc '), 'a b c'),
        (ValueError(), 'ValueError'),
        (OSError(errno.ENOSPC, 'full', '/x'), 'full'),
        (OSError('image file\nis truncated'), 'image file is truncated'),
        (RuntimeError('x' * 700), 'x' * 600 + ' ...'),
        (InputError('x' * 700), 'x' * 700),  # one of ours is never cut
        (raised(in_worker(raising(ValueError('a')))), 'a'),
    ],
)
def test_one_line_gives_the_reason(error, line):
    assert one_line(error) == line


def test_unknown_names_the_nearest_or_lists_the_known():
    names = [f'label {number}' for number in range(30)]
    assert str(unknown('label', 'labl 7', names)) == "unknown label 'labl 7': did you mean label 7?"
    assert str(unknown('label', 'x', 'ba')) == "unknown label 'x': choose from a, b."
    assert str(unknown('label', 'x', names)).endswith(', ... (30 in all).')


def test_missing_package_names_the_extra():
    assert str(missing_package('onnx', 'export')) == "onnx is not installed: pip install 'msff-timm[export]'"
