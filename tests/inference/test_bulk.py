"""Tests of results for many images in one file: kills, refusals, bad images, several processes."""

import csv
import json
import multiprocessing
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.inference import bulk
from msff_timm.inference.bulk import Settings, run
from msff_timm.inference.predict import predict
from msff_timm.inference.sources import Sources
from msff_timm.inference.tasks import EmbedTask, PredictTask
from msff_timm_cli import commands as cli

MODEL = 'msff_test_resnet'
pytestmark = pytest.mark.usefixtures('one_thread')


def make_images(folder: Path, count: int, suffix: str = '.png') -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        size = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f'{number:05}{suffix}')
    return folder


@pytest.fixture(scope='module')
def model():
    return hub.load(MODEL)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp('bulk') / 'photos', 300)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(bulk, 'PART_SIZE', 16)


def rows_of(path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def start(model, sources, output, settings) -> multiprocessing.Process:
    """Starts a run in a forked process, which a signal can end."""
    process = multiprocessing.get_context('fork').Process(
        target=run, args=(PredictTask(model, threshold=0.1), sources, output, settings)
    )
    process.start()
    return process


def test_run_writes_what_predict_yields(model, photos, tmp_path):
    sources, output = Sources([str(photos)]), tmp_path / 'tags.parquet'
    summary = run(PredictTask(model, scores=True), sources, output, Settings(workers=1, batch_size=10))
    images = sorted(map(str, photos.iterdir()))
    assert (summary.num_images, summary.num_unreadable, summary.num_computed) == (300, 0, 300)
    assert os.listdir(tmp_path) == ['tags.parquet']
    rows, everything = rows_of(output), list(predict(model, images, threshold=0.0))
    assert [row['image'] for row in rows] == images and {row['error'] for row in rows} == {None}
    for row, expected, all_labels in zip(rows, predict(model, images), everything, strict=True):
        assert dict(zip(row['labels'], row['probabilities'], strict=True)) == pytest.approx(expected.labels, abs=1e-5)
        scores = {name.removeprefix('score_'): row[name] for name in row if name.startswith('score_')}
        assert scores == pytest.approx(all_labels.labels, abs=1e-5)


@pytest.mark.parametrize('suffix', ['.jsonl', '.csv'])
def test_run_writes_text(model, photos, tmp_path, suffix, small_parts):
    (tmp_path / 'empty.png').touch()
    paths = [*sorted(map(str, photos.iterdir()))[:40], str(tmp_path / 'empty.png')]
    output, reference = tmp_path / f'tags{suffix}', tmp_path / 'tags.parquet'
    for path in (output, reference):
        summary = run(PredictTask(model, top_k=2), Sources(paths), path, Settings(workers=0))
        assert (summary.num_images, summary.num_unreadable) == (41, 1)
    expected = rows_of(reference)
    with open(output, newline='') as file:
        rows = list(csv.DictReader(file)) if suffix == '.csv' else list(map(json.loads, file))
    assert len(rows) == 41
    for row, other in zip(rows, expected, strict=True):
        assert row['image'] == other['image'] and (row['error'] or None) == other['error']
        labels, probabilities = row['labels'], row['probabilities']
        if suffix == '.csv':
            labels, probabilities = (text.split('|') if text else None for text in (labels, probabilities))
        assert labels == other['labels']
        if labels is not None:
            assert len(labels) == 2
            assert list(map(float, probabilities)) == pytest.approx(other['probabilities'], abs=1e-6)
    assert json.loads((tmp_path / f'tags{suffix}.json').read_text())['num_unreadable'] == 1


def test_run_averages_mirror_images(model, photos, tmp_path):
    image = Image.open(photos / '00000.png')
    both = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize(image.size)]
    for number, each in enumerate(both):
        each.save(tmp_path / f'{number}.png')
    paths = [str(tmp_path / f'{number}.png') for number in range(2)]
    for flip in (False, True):
        run(
            PredictTask(model, scores=True, flip=flip),
            Sources(paths),
            tmp_path / f'{flip}.parquet',
            Settings(workers=0),
        )
    one, other = rows_of(tmp_path / 'False.parquet')
    mean = rows_of(tmp_path / 'True.parquet')[0]
    for name in (name for name in one if name.startswith('score_')):
        logits = [np.log(row[name] / (1 - row[name])) for row in (one, other)]
        assert mean[name] == pytest.approx(1 / (1 + np.exp(-np.mean(logits))), abs=1e-4)


def test_run_embeds(model, photos, tmp_path):
    run(EmbedTask(model), Sources([str(photos)]), tmp_path / 'e.parquet', Settings(workers=0))
    table = pq.read_table(tmp_path / 'e.parquet')
    vectors = np.array(table['embedding'].to_pylist())
    assert len(vectors) == 300 and np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match=r"must end in .parquet, not in '.csv'"):
        run(EmbedTask(model), Sources([str(photos)]), tmp_path / 'e.csv')


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_run_in_half_precision_is_close(model, photos, tmp_path, precision):
    sources = Sources([str(photos / '0000*.png')])
    for name in ('fp32', precision):
        run(PredictTask(model, scores=True), sources, tmp_path / f'{name}.parquet', Settings(workers=0, precision=name))
    one, other = (rows_of(tmp_path / f'{name}.parquet') for name in ('fp32', precision))
    differences = [abs(a[n] - b[n]) for a, b in zip(one, other, strict=True) for n in a if n.startswith('score_')]
    assert 0 < max(differences) < 0.05


# Stops


@pytest.mark.parametrize('suffix', ['.parquet', '.jsonl'])
def test_run_killed_at_random_equals_an_undisturbed_one(model, photos, tmp_path, suffix, small_parts):
    sources, settings = Sources([str(photos)]), Settings(workers=1, batch_size=8)
    whole, killed = tmp_path / f'whole{suffix}', tmp_path / f'killed{suffix}'
    began = time.perf_counter()
    run(PredictTask(model, threshold=0.1), sources, whole, settings)
    duration, generator, progress = time.perf_counter() - began, random.Random(0), []
    for _ in range(8):
        process = start(model, sources, killed, settings)
        process.join(generator.uniform(0, duration))
        process.kill()
        process.join()
        progress.append(len(list(tmp_path.glob(f'killed{suffix}.parts/????????-*'))))
    assert progress == sorted(progress) or killed.exists()
    run(PredictTask(model, threshold=0.1), sources, killed, settings)
    assert not (tmp_path / f'killed{suffix}.parts').exists()
    if suffix == '.parquet':
        assert rows_of(killed) == rows_of(whole)
    else:
        assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('is_before', [True, False])
@pytest.mark.parametrize('name', ['images.jsonl', 'header.json', '00000001-0.parquet', 'killed.parquet'])
def test_run_survives_a_kill_at_each_step(model, photos, tmp_path, small_parts, monkeypatch, name, is_before):
    paths = Sources(sorted(map(str, photos.iterdir()))[:40])
    settings, replace = Settings(workers=0), os.replace

    def replace_and_die(source, target):
        if Path(target).name == name and is_before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', replace_and_die)
        process = start(model, paths, tmp_path / 'killed.parquet', settings)
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / 'killed.parquet').exists() == (name == 'killed.parquet' and not is_before)
    task = PredictTask(model, threshold=0.1)
    assert run(task, paths, tmp_path / 'killed.parquet', settings).num_images == 40
    run(task, paths, tmp_path / 'whole.parquet', settings)
    assert rows_of(tmp_path / 'killed.parquet') == rows_of(tmp_path / 'whole.parquet')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['killed.parquet', 'whole.parquet']


def command(*arguments, **options) -> subprocess.Popen:
    code = 'from msff_timm_cli.commands import main; import sys; sys.exit(main(sys.argv[1:]))'
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **options.pop('environment', {})},
        **options,
    )


def test_predict_command_stops_on_signals_and_resumes(tmp_path, capsys):
    photos = make_images(tmp_path / 'photos', 2000)
    arguments = ['predict', photos, '--model', MODEL, '-o', tmp_path / 'tags.jsonl', '-j', 1, '-b', 1]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        done = len(list(tmp_path.glob('tags.jsonl.parts/????????-*')))
        process = command(*arguments, start_new_session=True)
        while len(list(tmp_path.glob('tags.jsonl.parts/????????-*'))) <= done and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, number)  # all processes, as a terminal does
        error = process.communicate(timeout=60)[1]
        assert process.returncode == code and 'Traceback' not in error
        stopped = re.search(r'stopped: (\d+) of 2000 images are done; the same command resumes', error)
        assert int(stopped[1]) >= 256 * (done + 1)
    assert cli.main(list(map(str, arguments))) == 0
    printed = capsys.readouterr()
    assert re.search(r'resuming: \d+ of 2000 images are done', printed.err)
    assert printed.out.startswith(f'{tmp_path}/tags.jsonl: 2,000 images (')
    rows = list(map(json.loads, (tmp_path / 'tags.jsonl').read_text().splitlines()))
    assert [row['image'] for row in rows] == sorted(map(str, photos.iterdir()))


# Refusals


def test_run_refuses_an_output_of_other_settings(model, photos, tmp_path, small_parts):
    output, sources = tmp_path / 'tags.parquet', Sources([str(photos / '0000*.png')])
    run(PredictTask(model), sources, output, Settings(workers=0))
    before = output.read_bytes()
    assert run(PredictTask(model), sources, output).num_computed == 0
    other = hub.load(MODEL)
    next(other.parameters()).data[0] += 1
    fewer = hub.load(MODEL, num_classes=3, pretrained_cfg_overlay={'label_names': ['a', 'b', 'c']})
    renamed = hub.load(MODEL)
    renamed.pretrained_cfg = {**renamed.pretrained_cfg, 'label_names': [f'{k}' for k in range(12)]}
    for task, settings, message in (
        (PredictTask(other), Settings(), "weights 'sha256:"),
        (PredictTask(fewer), Settings(), '12 labels instead of 3'),
        (PredictTask(renamed), Settings(), r"labels\[0\] 'arrow' instead of '0'"),
        (PredictTask(model, threshold=0.3), Settings(), r'thresholds\[0\] [0-9.]+ instead of 0.3'),
        (PredictTask(model, scores=True), Settings(), 'scores False instead of True'),
        (PredictTask(model), Settings(precision='bf16'), "precision 'fp32' instead of 'bf16'"),
        (EmbedTask(model), Settings(), "command 'predict' instead of 'embed'"),
    ):
        with pytest.raises(InputError, match=f'was begun with other settings: .*{message}'):
            run(task, sources, output, settings)
    with pytest.raises(InputError, match='images.paths'):
        run(PredictTask(model), Sources([str(photos)]), output)
    assert output.read_bytes() == before and os.listdir(tmp_path) == ['tags.parquet']


def test_run_refuses_an_unfinished_output_of_other_settings(model, photos, tmp_path, small_parts):
    output, sources = tmp_path / 'tags.csv', Sources([str(photos)])
    process = start(model, sources, output, Settings(workers=0))
    while not list(tmp_path.glob('tags.csv.parts/????????-*')):
        time.sleep(0.001)
    process.kill()
    process.join()
    kept = sorted(os.listdir(tmp_path / 'tags.csv.parts'))
    with pytest.raises(InputError, match='top_k None instead of 3'):
        run(PredictTask(model, top_k=3), sources, output)
    assert set(kept) - {'.lock'} == set(os.listdir(tmp_path / 'tags.csv.parts')) - {'.lock'}


def test_run_refuses_a_file_of_others(model, photos, tmp_path):
    for name, content in (('a.csv', b'image,labels\n'), ('a.parquet', b'PAR1'), ('b.jsonl', b'')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match='exists, and no such command wrote it'):
            run(PredictTask(model), Sources([str(photos)]), tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    with pytest.raises(InputError, match="must end in .parquet or .jsonl or .csv, not in '.txt'"):
        run(PredictTask(model), Sources([str(photos)]), tmp_path / 'a.txt')
    with pytest.raises(InputError, match='no image found'):
        (tmp_path / 'none').mkdir()
        run(PredictTask(model), Sources([str(tmp_path / 'none')]), tmp_path / 'c.csv')
    assert not (tmp_path / 'c.csv.parts').exists()


def test_run_refuses_a_second_command_on_one_output(model, photos, tmp_path, small_parts):
    output, sources = tmp_path / 'tags.parquet', Sources([str(photos)])
    process = start(model, sources, output, Settings(workers=0))
    while not list(tmp_path.glob('tags.parquet.parts/????????-*')):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(InputError, match=f'tags.parquet is in use by another run .process {process.pid} on'):
            run(PredictTask(model, threshold=0.1), sources, output)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0 and len(rows_of(output)) == 300


@pytest.mark.parametrize('settings', [dict(batch_size=0), dict(batch_size=300), dict(workers=-1), dict(precision='x')])
def test_settings_are_checked(settings):
    with pytest.raises(InputError):
        Settings(**settings)


def test_predict_command_names_options_that_need_an_output(capsys):
    for option in (['--scores'], ['-j', '2'], ['-b', '4'], ['--precision', 'bf16'], ['--sidecar', 'xmp']):
        assert cli.main(['predict', 'x.jpg', *option]) == 2
        assert 'is for results in a file: add -o FILE.' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(['predict', 'x.jpg', '--top-k', '0'])
    assert '--top-k' in capsys.readouterr().err


@pytest.mark.parametrize('suffix', ['.jsonl', '.parquet'])
def test_predict_command_needs_pyarrow_for_parquet_only(photos, tmp_path, monkeypatch, capsys, suffix):
    for module in ('pyarrow', 'datasets'):
        monkeypatch.setitem(sys.modules, module, None)
    arguments = ['predict', f'{photos}/0000*.png', '--model', MODEL, '-j', '0', '-o', f'{tmp_path}/a{suffix}', '-q']
    if suffix == '.jsonl':
        assert cli.main(arguments) == 0
        return
    assert cli.main(arguments) == 2 and os.listdir(tmp_path) == []
    assert "pyarrow is not installed: pip install 'msff-timm[bulk]'" in capsys.readouterr().err


# Bad images, and other faults


def test_run_names_images_that_cannot_be_read(model, photos, tmp_path):
    folder = tmp_path / 'bad'
    folder.mkdir()
    header = struct.pack('>IIBBBBB', 20_000, 10_000, 8, 2, 0, 0, 0)  # 200 megapixels
    head = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + header + struct.pack('>I', zlib.crc32(b'IHDR' + header))
    (folder / 'large.png').write_bytes(head + b'\0\0\0\0IDAT' + struct.pack('>I', zlib.crc32(b'IDAT')))
    (folder / 'zero.jpg').touch()
    (folder / 'cut.png').write_bytes((photos / '00000.png').read_bytes()[:200])
    for name in ('thin.png', os.fsdecode(b'caf\xe9.png'), 'two\nlines.png'):
        Image.new('RGB', (1, 3000), 'teal').save(folder / name)
    os.mkfifo(folder / 'fifo.png')
    (tmp_path / 'list').write_bytes(b''.join(os.fsencode(p) + b'\n' for p in folder.iterdir() if '\n' not in p.name))
    (tmp_path / 'list').open('a').write(f'{folder}/gone.png\n')
    summary = run(PredictTask(model), Sources([str(folder)]), tmp_path / 'a.jsonl', Settings(workers=1))
    listed = run(PredictTask(model), Sources([f'@{tmp_path}/list']), tmp_path / 'b.parquet', Settings(workers=0))
    assert (summary.num_images, summary.num_unreadable) == (7, 4)
    assert (listed.num_images, listed.num_unreadable) == (7, 5)
    rows = {Path(row['image']).name: row for row in map(json.loads, (tmp_path / 'a.jsonl').read_text().splitlines())}
    good = {'thin.png', 'caf\\xe9.png', 'two\nlines.png'}
    assert {name for name, row in rows.items() if row['error'] is None} == good
    reasons = {'large.png': '200000000 pixels', 'zero.jpg': 'not an image', 'fifo.png': 'FIFO', 'cut.png': '.'}
    assert all(reason in rows[name]['error'] for name, reason in reasons.items())
    listed = {Path(row['image']).name: row['error'] for row in rows_of(tmp_path / 'b.parquet')}
    assert 'there is no such file' in listed['gone.png'] and 'caf\\xe9.png' in listed


@pytest.mark.parametrize('task', [lambda model: PredictTask(model, scores=True), EmbedTask])
def test_run_merges_parts_without_any_readable_image(model, photos, tmp_path, monkeypatch, task):
    monkeypatch.setattr(bulk, 'PART_SIZE', 2)
    paths = [*map(str, sorted(photos.iterdir())[:2]), 'gone.png', 'lost.png']
    summary = run(task(model), Sources(paths), tmp_path / 'a.parquet', Settings(workers=0))
    assert (summary.num_images, summary.num_unreadable) == (4, 2)
    values = [
        [value for key, value in row.items() if key not in ('image', 'error')]
        for row in rows_of(tmp_path / 'a.parquet')
    ]
    assert None not in values[0] + values[1] and set(values[2] + values[3]) == {None}


def test_run_writes_sidecars(model, tmp_path):
    photos = make_images(tmp_path / 'photos', 3)
    (photos / '00001.txt').write_text('notes')
    run(PredictTask(model, top_k=2), Sources([str(photos)]), tmp_path / 'a.jsonl', Settings(workers=0, sidecar='txt'))
    rows = list(map(json.loads, (tmp_path / 'a.jsonl').read_text().splitlines()))
    for number, row in enumerate(rows):
        expected = 'notes' if number == 1 else f'{", ".join(row["labels"])}\n'
        assert (photos / f'{number:05}.txt').read_text() == expected
    with pytest.raises(InputError, match='--sidecar needs labels'):
        run(EmbedTask(model), Sources([str(photos)]), tmp_path / 'a.parquet', Settings(workers=0, sidecar='txt'))


def test_run_names_images_too_long_for_a_crop(tmp_path):
    import timm

    model = timm.create_model('test_resnet', num_classes=2).eval()  # resizes the shorter side and crops
    Image.new('L', (1, 60_000)).save(tmp_path / 'thin.png')
    run(PredictTask(model), Sources([str(tmp_path / 'thin.png')]), tmp_path / 'a.jsonl', Settings(workers=0))
    assert 'too long for the crop of the model (1 x 60000)' in (tmp_path / 'a.jsonl').read_text()


def test_run_keeps_parts_on_a_full_disk(model, photos, tmp_path, small_parts, monkeypatch):
    output, sources, settings = tmp_path / 'tags.parquet', Sources([str(photos)]), Settings(workers=0)
    write, written = bulk.write_part, []

    def fill(path, columns):
        if len(written) == 3:
            raise OSError(28, 'No space left on device', str(path))
        write(path, columns)
        written.append(path.name)

    monkeypatch.setattr(bulk, 'write_part', fill)
    with pytest.raises(OSError, match='No space left'):
        run(PredictTask(model), sources, output, settings)
    assert {path.name for path in (tmp_path / 'tags.parquet.parts').glob('0*')} == set(written)
    monkeypatch.setattr(bulk, 'write_part', write)
    assert run(PredictTask(model), sources, output, settings).num_computed == 300 - 3 * 16


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='mounts a file system')
def test_predict_command_reports_a_full_disk(photos, tmp_path, capsys):
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40k', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('cannot mount a file system here')
    try:
        arguments = ['predict', photos, '--model', MODEL, '-o', disk / 'tags.jsonl', '-j', 0, '--scores', '-q']
        assert cli.main(list(map(str, arguments))) == 2
        error = capsys.readouterr().err
        assert 'No space left on device; make room there' in error and error.count('\n') == 1
    finally:
        subprocess.run(['umount', disk], check=True)


# Several processes, and other start methods


def launch(photos, output, *arguments, processes=2) -> subprocess.Popen:
    launcher = [sys.executable, '-m', 'accelerate.commands.launch', '--quiet', '--multi_gpu', '--main_process_port=0']
    launcher += [f'--num_processes={processes}', '--mixed_precision=no', '-m', 'msff_timm.inference.predict']
    return subprocess.Popen(
        [*launcher, photos, '--model', MODEL, '-o', output, *map(str, arguments)],
        env={**os.environ, 'ACCELERATE_USE_CPU': '1', 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_run_is_shared_by_processes(model, tmp_path):
    photos = make_images(tmp_path / 'photos', 600)
    process = launch(photos, tmp_path / 'two.parquet', '-j', 0, '--threshold', 0.1)
    printed, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert 'process 1 of 2' in error and re.search(r' 344/344 ', error)  # parts 1 and 3 of 256, 256 and 88 images
    assert printed.count('two.parquet: 600 images') == 1
    run(PredictTask(model, threshold=0.1), Sources([str(photos)]), tmp_path / 'one.parquet', Settings(workers=0))
    assert rows_of(tmp_path / 'two.parquet') == rows_of(tmp_path / 'one.parquet')
    assert sorted(os.listdir(tmp_path)) == ['one.parquet', 'photos', 'two.parquet']


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_predict_command_killed_20_times_equals_an_undisturbed_run(tmp_path, processes):
    folder, photos = make_images(tmp_path / 'some', 500), tmp_path / 'photos'
    photos.mkdir()
    for number in range(5000):
        os.link(folder / f'{number % 500:05}.png', photos / f'{number:05}.png')

    def begin(name):
        if processes > 1:
            return launch(photos, tmp_path / name, '-j', 1, '-b', 8, '--scores', processes=processes)
        arguments = ['predict', photos, '--model', MODEL, '-o', tmp_path / name, '-j', 1, '-b', 8, '--scores']
        return command(*arguments, start_new_session=True)

    def wait_for_lock(name, process):
        """Waits until the run has begun, and returns the time."""
        lock, began = tmp_path / f'{name}.parts' / '.lock', time.time()
        while process.poll() is None and not (lock.exists() and lock.stat().st_mtime > began):
            time.sleep(0.01)
        return time.perf_counter()

    process = begin('whole.parquet')
    began = wait_for_lock('whole.parquet', process)
    assert process.communicate()[0].startswith(f'{tmp_path}/whole.parquet: 5,000 images')
    duration, generator = time.perf_counter() - began, random.Random(processes)
    whole, killed = rows_of(tmp_path / 'whole.parquet'), tmp_path / 'killed.parquet'
    assert [row['image'] for row in whole] == sorted(map(str, photos.iterdir()))
    done, kills = [], 0
    while kills < 20 or not killed.exists():
        if killed.exists():  # complete: once more from the beginning
            assert rows_of(killed) == whole
            killed.unlink()
        process = begin('killed.parquet')
        wait_for_lock('killed.parquet', process)
        try:
            process.communicate(timeout=None if kills == 20 else generator.uniform(0, 0.7 * duration))
        except subprocess.TimeoutExpired:
            # The launcher gives its processes sessions of their own.
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.communicate()
            kills += 1
            done.append(len(list(tmp_path.glob('killed.parquet.parts/????????-*'))))
    assert rows_of(killed) == whole and sorted(os.listdir(tmp_path)) == [
        'killed.parquet',
        'photos',
        'some',
        'whole.parquet',
    ]
    assert len(set(done)) > 3  # kills in the middle of the work
    print(f'{processes} process(es): parts of 20 that were done after each kill: {done}')
