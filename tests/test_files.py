import os
import sys
import threading

import pytest

from msff_timm.errors import InputError
from msff_timm.files import check_file, check_folder, read_small, replace_file, replace_files, write_text

PLACES = [
    'fine',
    'new/deep/er',
    'file/x',
    'dangling',
    'dangling/x',
    'loop/x',
    'a' * 255,
    'a' * 256,
    f'new/{"a" * 255}',
    f'new/{"a" * 256}',
    f'{"b" * 200}/' * 30,
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'file').write_text('kept')
    (tmp_path / 'there').mkdir()
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere' / 'x')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    return tmp_path


def listing(folder):
    return sorted(str(path) for path in folder.rglob('*'))


@pytest.mark.parametrize('place', [*PLACES, 'file', 'there', 'nul\0x', '/proc/x'])
def test_check_folder_agrees_with_the_system(folder, place):
    before, refused = listing(folder), None
    try:
        check_folder(folder / place, 'output')
    except InputError as e:
        refused = str(e)
    assert listing(folder) == before
    try:
        os.makedirs(folder / place, exist_ok=True)
        works = True
    except (OSError, ValueError):
        works = False
    assert works == (refused is None)
    if refused:
        shown = str(folder / place).replace('\0', '\\0')
        assert refused.startswith(f'output is {shown}: nothing can be written to ')
        assert refused.endswith('); choose another place.') and '\n' not in refused


@pytest.mark.parametrize(
    ('place', 'reason'),
    [
        ('fine', None),
        ('file', None),
        ('new/x', None),
        ('dangling', None),  # is replaced
        ('there', 'that is a folder; name a file.'),
        ('file/x', 'file (Not a directory); choose another place.'),
        ('dangling/x', '(No such file or directory); choose another place.'),
        ('a' * 255, None),
        ('a' * 256, '(File name too long); choose another place.'),
        ('/proc/x', 'nothing can be written to /proc ('),
    ],
)
def test_check_file_refuses_places_that_cannot_be_written(folder, place, reason):
    before = listing(folder)
    if reason is None:
        check_file(folder / place, 'scores')
    else:
        with pytest.raises(InputError) as caught:
            check_file(folder / place, 'scores')
        assert str(caught.value).startswith(f'scores is {folder / place}: ') and reason in str(caught.value)
    assert listing(folder) == before and (folder / 'file').read_text() == 'kept'


def test_check_file_allows_devices_and_may_require_the_folder(folder):
    check_file('/dev/null', 'output')
    check_file(folder / 'x', 'output', parents=False)
    with pytest.raises(InputError, match=r'nothing can be written to .*new \(No such file or directory\)'):
        check_file(folder / 'new' / 'x', 'output', parents=False)


@pytest.mark.skipif(sys.platform == 'win32' or os.geteuid() == 0, reason='root writes everywhere')
def test_check_folder_refuses_a_folder_without_permission(folder):
    (folder / 'there').chmod(0o500)
    with pytest.raises(InputError, match='Permission denied'):
        check_folder(folder / 'there' / 'x', 'output')


def test_read_small_reads_regular_files_only(folder):
    (folder / 'link').symlink_to(folder / 'file')
    assert read_small(folder / 'link', 4, 'text') == b'kept'
    os.mkfifo(folder / 'pipe')
    for path, most, reason in (
        (folder / 'file', 3, 'over 3 bytes'),
        (folder / 'there', 9, 'Is a directory'),
        (folder / 'gone', 9, 'No such file or directory'),
        (folder / 'loop', 9, 'Too many levels of symbolic links'),
        (folder / 'pipe', 9, 'a device or a pipe'),
        ('/dev/zero', 9, 'a device or a pipe'),
        (f'{folder}/a\0b', 9, 'embedded null byte'),
    ):
        said = []

        def read(path=path, most=most, said=said):
            try:
                read_small(path, most, 'text')
            except InputError as e:
                said.append(str(e))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(20)  # it must not wait for a writer
        assert said and 'cannot be read as text (' in said[0] and reason in said[0] and '\0' not in said[0]


def test_replace_files_moves_all_files_or_none(folder):
    with replace_files(folder / 'new') as temporary:
        (temporary / 'b').write_text('b')
        (temporary / 'a').write_text('a')
        assert listing(folder / 'new') == [str(temporary), str(temporary / 'a'), str(temporary / 'b')]
    assert {path.name: path.read_text() for path in (folder / 'new').iterdir()} == {'a': 'a', 'b': 'b'}
    with pytest.raises(ZeroDivisionError), replace_files(folder) as temporary:
        (temporary / 'file').write_text('half')
        raise ZeroDivisionError
    assert (folder / 'file').read_text() == 'kept' and not list(folder.glob('.*'))


def test_replace_files_moves_data_before_the_file_that_needs_it(folder, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, 'replace', lambda source, target: (moved.append(target.name), replace(source, target)))
    with replace_files(folder) as temporary:
        for name in ('config.json', 'model.safetensors', 'model.onnx', 'model.onnx.data'):
            (temporary / name).touch()
    assert moved == ['model.safetensors', 'model.onnx.data', 'model.onnx', 'config.json']


def test_write_text_replaces_a_file_and_creates_its_folder(folder):
    for path in (folder / 'file', folder / 'new' / 'x'):
        write_text(path, 'é')
        assert path.read_bytes() == 'é'.encode()
    assert not list(folder.rglob('.*'))
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / 'file').stat().st_mode & 0o777 == 0o666 & ~umask


def test_replace_file_writes_to_a_device_or_a_pipe_itself(folder):
    os.mkfifo(folder / 'pipe')
    with replace_file(folder / 'pipe') as path:
        assert path == folder / 'pipe'
    assert (folder / 'pipe').is_fifo()
