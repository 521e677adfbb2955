import io
import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from msff_timm.training import commands, train

ROOT = Path(__file__).parents[2]


def git(folder, *arguments):
    command = ['git', '-C', folder, '-c', 'user.name=x', '-c', 'user.email=x@example.org', *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_records_commit_and_changes(tmp_path, monkeypatch):
    file, none = tmp_path / 'report.py', {'git_commit': None, 'git_dirty': None}
    file.write_text('a')
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert commands._git_state(file) == none  # no checkout
    git(tmp_path, 'init')
    assert commands._git_state(file) == none  # a checkout without the file
    git(tmp_path, 'add', 'report.py')
    git(tmp_path, 'commit', '-m', 'a')
    (tmp_path / 'runs').write_text('not tracked')
    commit = git(tmp_path, 'log', '--format=%H')
    assert commands._git_state(file) == {'git_commit': commit, 'git_dirty': False}
    file.write_text('b')
    assert commands._git_state(file) == {'git_commit': commit, 'git_dirty': True}
    monkeypatch.setenv('PATH', str(tmp_path))
    assert commands._git_state(file) == none  # no git


def test_environment_records_command_and_device():
    found = commands.environment(Accelerator(cpu=True))
    assert found['devices'] == [f'cpu ({commands.platform.machine()})']
    assert shlex.split(found['command'])[-1] == sys.orig_argv[-1] and len(found['git_commit'] or 40 * '0') == 40


def test_command_line_returns_the_launcher(tmp_path):
    """The launcher's command line, with its own arguments, if a launcher started the script."""
    script, launcher = tmp_path / 'script.py', tmp_path / 'launcher.py'
    script.write_text('from msff_timm.training import commands\nprint(commands.command_line())')
    launcher.write_text('import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[2:]], check=True)')
    command = [sys.executable, str(launcher), '--num_processes=1', str(script), '--output', 'a b']
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert printed == f"{sys.executable} {launcher} --num_processes=1 {script} --output 'a b'"


@pytest.mark.parametrize(
    'launched',
    [['-m', 'msff_timm.training.train'], ['-m', '--num_processes=2', 'msff_timm.training.train'], ['/x/train.py']],
)
def test_command_line_recognises_a_module(monkeypatch, launched):
    """With `-m`, the first argument is the path of the module, and the launcher's command line has its name."""
    launcher = ['accelerate', 'launch', *launched, '--config', 'demo']
    spec = SimpleNamespace(name='msff_timm.training.train')
    monkeypatch.setattr(sys, 'argv', ['/x/train.py', '--config', 'demo'])
    monkeypatch.setattr(sys.modules['__main__'], '__spec__', spec)
    parent = SimpleNamespace(cmdline=lambda: launcher)
    monkeypatch.setattr(commands.psutil, 'Process', lambda: SimpleNamespace(parent=lambda: parent))
    assert shlex.split(commands.command_line()) == launcher
    launcher[-1] = 'other'
    assert shlex.split(commands.command_line()) == sys.orig_argv


def test_train_runs_as_a_module_from_any_folder(tmp_path):
    command = [sys.executable, '-m', 'msff_timm.training.train', '--print_config', '--config']
    ended = subprocess.run([*command, 'coco2014_448'], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.startswith('output: runs/coco2014_448\n'), ended.stderr
    ended = subprocess.run([*command, 'coco2015'], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count('\n') == 1
    assert ended.stderr.startswith('train.py: error: --config is coco2015: there is no such file or recipe;')


@pytest.mark.parametrize('status', [None, 'Name:\tpython\nVmRSS:\t 10 kB\n'], ids=['no file', 'no VmHWM'])
def test_peak_memory_works_without_vmhwm(status, tmp_path, monkeypatch):
    """As in gVisor, on BSD and macOS, and on Windows."""

    def opened(path, *args, **kwargs):
        assert path == '/proc/self/status'
        if status is None:
            raise FileNotFoundError(2, 'No such file or directory', path)
        return io.StringIO(status)

    cpu, largest = SimpleNamespace(device=torch.device('cpu')), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(commands, 'open', opened, raising=False)
    assert commands.peak_memory(cpu) >= largest * 1024
    monkeypatch.setattr(commands.sys, 'platform', 'darwin')  # where it is in bytes
    assert largest <= commands.peak_memory(cpu) < largest * 1024
    monkeypatch.setattr(commands, 'resource', None)
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7))
    monkeypatch.setattr(commands.psutil, 'Process', lambda: windows)
    assert commands.peak_memory(cpu) == 7


def test_peak_memory_excludes_the_parent_process():
    child = """
import torch
from types import SimpleNamespace
from msff_timm.training.commands import peak_memory
kept = torch.ones(100_000_000)
print(peak_memory(SimpleNamespace(device=torch.device('cpu'))))
"""
    parent = f'import subprocess, sys; large = b"x" * 3 * 10**9; subprocess.run([sys.executable, "-c", {child!r}])'
    printed = subprocess.run([sys.executable, '-c', parent], capture_output=True, text=True, check=True).stdout
    assert 4e8 < int(printed) < 2.5e9


def test_training_modules_import_without_unix():
    """Modules and functions that Windows lacks are hidden before the imports."""
    script = f"""
import os, signal, sys
import torch, datasets, accelerate, timm, jsonargparse, psutil, matplotlib.figure
for module in ('resource', 'fcntl', 'pwd', 'grp', 'termios'):
    sys.modules[module] = None
for name in ('sched_getaffinity', 'getloadavg', 'geteuid', 'getuid', 'killpg', 'fork', 'mkfifo', 'O_NONBLOCK'):
    delattr(os, name)
for name in ('SIGHUP', 'SIGALRM', 'SIGKILL', 'SIGUSR1'):
    delattr(signal, name)
sys.path.insert(0, {str(ROOT / 'train' / 'benchmarks')!r})
import benchmark
from msff_timm.inference import app, explain, export, predict
from msff_timm.training import evaluate, train
from msff_timm.training.config import CONFIGS, TrainConfig, parse
from msff_timm.training.studies import ablate, compare
parse(TrainConfig, [], default_file=CONFIGS / 'demo.yaml')
train.share_cores(train.Accelerator(cpu=True), 1)
"""
    ended = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def handlers():
    """Restores the signal handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stop_request_ends_the_process_while_there_is_nothing_to_save(number, code, handlers, monkeypatch, capfd):
    monkeypatch.setattr(sys, 'argv', ['train/train.py'])
    commands.StopRequest(waits=False)

    def main():
        try:
            os.kill(os.getpid(), number)
        except Exception:  # e.g. in a library
            pass
        print('goes on')

    with pytest.raises(SystemExit) as ended:
        commands.run_command(main)
    assert ended.value.code == code
    assert tuple(capfd.readouterr()) == ('', 'train.py: stopped before its first step.\n')


def test_stop_request_records_the_signal_once_there_is_something_to_save(handlers):
    stop = commands.StopRequest()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_run_command_ends_when_its_reader_has_gone():
    script = """
import os, sys
from msff_timm.training.commands import run_command
def main():
    for _ in range(100_000):
        print('a line')
run_command(main)
"""
    pipe = f'\'{sys.executable}\' -c "$SCRIPT" | head -1; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, 'SCRIPT': script}
    ended = subprocess.run(['bash', '-c', pipe], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (141, 'a line\n')
    assert ended.stderr == '-c: the reader of its output has gone; files that were written are kept.\n'


def test_startup_reports_ctrl_c_during_imports_on_one_line(tmp_path):
    """Ctrl-C arrives in a module that shadows timm."""
    (tmp_path / 'timm.py').write_text('import os, signal; os.kill(os.getpid(), signal.SIGINT)')
    restore = 'import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler);'
    for script in ('train', 'evaluate', 'compare', 'ablate', 'benchmarks/benchmark'):
        path = ROOT / 'train' / f'{script}.py'
        run = f'{restore} sys.argv = [{str(path)!r}]; sys.path.insert(0, {str(path.parent)!r});'
        run += f'sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({str(path)!r}, run_name="__main__")'
        ended = subprocess.run([sys.executable, '-c', run], capture_output=True, text=True)
        assert ended.returncode and ended.stderr == f'{path.name}: interrupted.\n'


def test_main_reports_a_fault_with_the_checkpoint_to_resume_from(tmp_path, monkeypatch, capsys):
    def broken(self):
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')

    checkpoints = SimpleNamespace(advice=lambda: '--resume auto resumes from step-00000001')
    run = SimpleNamespace(train=lambda: broken(None), checkpoints=checkpoints)
    monkeypatch.setattr(train, 'Trainer', lambda *args: run)
    monkeypatch.setattr(train, 'StopRequest', lambda waits: SimpleNamespace())
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    monkeypatch.setattr(sys, 'argv', ['train.py', f'--output={tmp_path / "run"}', '--trackers=[]', '--resume=auto'])
    with pytest.raises(SystemExit) as ended:
        commands.run_command(train.main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.count('\n') == 1
    assert printed.endswith(f'The run in {tmp_path / "run"} has stopped: --resume auto resumes from step-00000001.\n')
    assert printed.startswith('train.py: error: a data loader worker was killed')
