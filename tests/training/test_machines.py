import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[2]
MACHINES = ROOT / 'train' / 'accelerate'
TINY = ['--data.train_size=32', '--data.eval_size=16', '--data.image_size=64', '--data.workers=0']
TINY += ['--optim.epochs=1', '--optim.batch_size=8']
ADDRESSES = ('10.77.0.1', '10.77.0.2')


@pytest.mark.parametrize(
    ('name', 'arguments', 'outcome'),
    [
        ('cpu', '', ('NO', True, 1, 1, 'no')),
        ('cpu', '--mixed_precision bf16', ('NO', True, 1, 1, 'bf16')),
        ('gpu', '', ('NO', False, 1, 1, 'bf16')),
        ('gpu', '--mixed_precision fp16', ('NO', False, 1, 1, 'fp16')),
        ('gpu', '--mixed_precision no', ('NO', False, 1, 1, 'no')),
        ('multi_gpu', '--num_processes 8', ('MULTI_GPU', False, 1, 8, 'bf16')),
        ('multi_gpu', '--num_processes 4 --mixed_precision fp16', ('MULTI_GPU', False, 1, 4, 'fp16')),
        ('multi_node', '--num_processes 16 --machine_rank 1', ('MULTI_GPU', False, 2, 16, 'bf16')),
        ('multi_node', '--num_processes 32 --num_machines 4', ('MULTI_GPU', False, 4, 32, 'bf16')),
    ],
)
def test_accelerate_files_are_read_and_overridden(name, arguments, outcome):
    path = str(MACHINES / f'{name}.yaml')
    kind = load_config_from_file(path).distributed_type.value
    command = ['--config_file', path, *arguments.split(), 'train.py']
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (kind, args.use_cpu, args.num_machines, args.num_processes, args.mixed_precision) == outcome
    assert args.multi_gpu == (kind == 'MULTI_GPU')
    if name == 'multi_node':
        assert args.main_process_port == 29500


@pytest.mark.parametrize('name', ['multi_gpu', 'multi_node'])
def test_accelerate_files_need_the_number_of_gpus(name):
    with pytest.raises(ValueError, match='You need to manually pass in `--num_processes`'):
        _validate_launch_command(
            launch_command_parser().parse_args(['--config_file', str(MACHINES / f'{name}.yaml'), 'train.py'])
        )


def launch(*arguments: object, prefix: tuple[str, ...] = (), network: str = 'lo', cwd: Path = ROOT) -> subprocess.Popen:
    """Starts `accelerate launch` on the CPU; several processes communicate over the given network device."""
    command = [*prefix, sys.executable, '-m', 'accelerate.commands.launch', '--quiet', *map(str, arguments)]
    environment = {**os.environ, 'ACCELERATE_USE_CPU': '1', 'GLOO_SOCKET_IFNAME': network}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=cwd
    )


def finish(processes: list[subprocess.Popen], seconds: float = 100) -> list[str]:
    """Waits for all processes, which must end with code 0, and returns their output."""
    try:
        deadline = time.monotonic() + seconds
        printed = [process.communicate(timeout=max(1, deadline - time.monotonic()))[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # a kill would leave its workers behind
    assert [process.returncode for process in processes] == [0] * len(processes), '\n\n'.join(printed)
    return printed


@pytest.mark.slow
def test_cpu_file_trains(tmp_path):
    finish([launch('--config_file', MACHINES / 'cpu.yaml', ROOT / 'train' / 'train.py', *TINY, f'--output={tmp_path}')])
    run = json.loads((tmp_path / 'results.json').read_text())
    assert (run['num_processes'], run['mixed_precision']) == (1, 'no')


@pytest.fixture
def namespaces():
    """Two connected network namespaces, each with its own addresses and ports; None if they are not permitted."""
    names = tuple(f'msff{os.getpid()}{side}' for side in 'ab')

    def ip(*arguments: str) -> None:
        subprocess.run(['ip', *arguments], check=True, capture_output=True)

    with ExitStack() as undo:
        try:
            for name in names:
                ip('netns', 'add', name)
                undo.callback(ip, 'netns', 'del', name)
            ip('link', 'add', 'cable', 'netns', names[0], 'type', 'veth', 'peer', 'name', 'cable', 'netns', names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip('-n', name, 'addr', 'add', f'{address}/24', 'dev', 'cable')
                for device in ('lo', 'cable'):
                    ip('-n', name, 'link', 'set', device, 'up')
                ip('netns', 'exec', name, 'true')
        except (FileNotFoundError, subprocess.CalledProcessError):  # no `ip`, or no permission
            yield None
        else:
            yield names


@pytest.mark.parametrize('isolated', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_multi_node_file_trains_on_two_machines(namespaces, isolated, tmp_path):
    """The two commands of `multi_node.yaml`, each with its own network, working folder and output.

    Where no namespaces may be made, the machines are two addresses of this one.
    """
    if isolated and namespaces:
        ip, network, port = ADDRESSES[0], 'cable', []
        prefixes = [('ip', 'netns', 'exec', name) for name in namespaces]
    else:
        ip, network, prefixes = '127.0.0.2', 'lo', [(), ()]  # the second machine has the address 127.0.0.1
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = ['--main_process_port', probe.getsockname()[1]]

    def train(*more: str) -> list[str]:
        machines = []
        for rank, prefix in enumerate(prefixes):
            folder = tmp_path / f'machine-{rank}'
            folder.mkdir(exist_ok=True)
            command = ['--config_file', MACHINES / 'multi_node.yaml', '--num_processes', 2, '--machine_rank', rank]
            command += ['--main_process_ip', ip, *port, '--mixed_precision', 'no']
            command += [ROOT / 'train' / 'train.py', *TINY, f'--output=run-{rank}', *more]
            machines.append(launch(*command, prefix=prefix, cwd=folder, network=network))
        return finish(machines)

    printed = train()

    first, second = tmp_path / 'machine-0', tmp_path / 'machine-1'
    run = json.loads((first / 'run-0' / 'results.json').read_text())
    assert (run['num_processes'], run['num_images'], len(run['history'])) == (2, 16, 1)
    assert all('with 2 processes' in text for text in printed)  # each machine prints
    assert (first / 'run-0' / 'model.safetensors').is_file() and not (first / 'run-1').exists()
    assert not (second / 'run-0').exists() and not (second / 'run-1' / 'results.json').exists()

    # Each machine has saved the whole run to its own disk, and both resume from the same step.
    runs = [first / 'run-0', second / 'run-1']
    checkpoints = [sorted((folder / 'checkpoints').iterdir()) for folder in runs]
    assert [[path.name for path in found] for found in checkpoints] == [['step-00000004']] * 2
    assert all((found[0] / 'model.safetensors').is_file() for found in checkpoints)
    assert all('Resuming from run-' in text for text in train('--resume=auto'))
    assert json.loads((first / 'run-0' / 'results.json').read_text())['history'] == run['history']
