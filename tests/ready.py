"""Scripts in processes that have imported the packages already: one starts in a tenth of a second in place of five."""

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

context = multiprocessing.get_context('forkserver')
# The first sets what must precede the import of PyTorch. The server imports, but computes nothing.
context.set_forkserver_preload(
    ['msff_timm_cli.startup', 'msff_timm.training.train', 'msff_timm.training.evaluate']
    + ['torch.utils.tensorboard', 'matplotlib.backends.backend_agg', 'matplotlib.figure', 'scipy.stats']
)


def run(path: Path, arguments: list[str], processes: int, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs a script in one or several processes, which find one another as those of `torchrun` do."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ('stdout', 'stderr')]
        runs = []
        with socket.create_server(('127.0.0.1', 0)) as server:
            port = server.getsockname()[1]
        for rank in range(processes):
            ranks = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': processes, 'LOCAL_WORLD_SIZE': processes}
            ranks |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
            own = environment | ({key: str(value) for key, value in ranks.items()} if processes > 1 else {})
            runs.append(context.Process(target=_run, args=(str(path), arguments, own, files)))
            runs[-1].start()
        deadline = time.monotonic() + 600
        while any(run.is_alive() for run in runs):
            multiprocessing.connection.wait([run.sentinel for run in runs if run.is_alive()], 60)
            if any(run.exitcode for run in runs) or time.monotonic() > deadline:
                for run in runs:  # the others would wait for it
                    run.kill()
        code = next((run.exitcode for run in runs if run.exitcode), 0)
        printed = [file.read_text(encoding='utf-8') if file.exists() else '' for file in files]
        return subprocess.CompletedProcess([path, *arguments], code, *printed)


def _run(path: str, arguments: list[str], environment: dict[str, str], files: list[Path]) -> None:
    import numpy as np
    import torch

    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    multiprocessing.set_start_method(None, force=True)  # the default, not that of this process
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # as in any new process, not as the server left it
    if 'RANK' in environment:
        torch.set_num_threads(1)  # as `torchrun` does
    sys.argv = [path, *arguments]
    sys.path[0] = str(Path(path).parent)
    runpy.run_path(path, run_name='__main__')
