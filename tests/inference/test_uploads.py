import os
import socket
import tempfile
import time
from pathlib import Path

from forks import forked
from hypothesis import given
from hypothesis import strategies as st

from msff_timm.inference.uploads import Uploads, allowed_hosts, temporary_folder


def test_allowed_hosts_are_those_of_the_address(monkeypatch):
    monkeypatch.setenv('SPACE_HOST', 'org-name.hf.space')
    assert allowed_hosts('Photos.lan') == ({'localhost', '127.0.0.1', '::1', 'photos.lan', 'org-name.hf.space'}, False)
    monkeypatch.delenv('SPACE_HOST')
    names, is_any_address = allowed_hosts('0.0.0.0')
    assert is_any_address and socket.gethostname().lower() in names and 'evil.example' not in names


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 600)), max_size=12), st.integers(0, 120))
def test_make_room_deletes_the_oldest_files(files, size):
    with tempfile.TemporaryDirectory() as folder:
        now = time.time()
        for number, (file_size, age) in enumerate(files):
            path = Path(folder, str(number), 'x')
            path.parent.mkdir()
            path.write_bytes(b'x' * file_size)
            os.utime(path, (now - age,) * 2)
        has_room = Uploads(folder, max_bytes=100, max_files=5).make_room(size)
        kept = [(file_size, age) for n, (file_size, age) in enumerate(files) if Path(folder, str(n), 'x').exists()]
        fits = sum(file_size for file_size, _ in kept) + size <= 100 and len(kept) < 5
        assert has_room == fits
        gone = [age for n, (_, age) in enumerate(files) if not Path(folder, str(n), 'x').exists()]
        assert all(age >= 59 for age in gone) and min(gone, default=600) >= max((age for _, age in kept), default=0) - 1
        assert fits or all(age <= 61 for _, age in kept)
        assert len(list(Path(folder).iterdir())) == len(kept)


def hold_folder(pipe, temporary):
    tempfile.tempdir = temporary
    with temporary_folder() as folder:
        (folder / 'photo.jpg').write_bytes(b'x')
        pipe.send(str(folder))
        time.sleep(60)


def test_temporary_folder_cleans_up_after_killed_servers_only(tmp_path, monkeypatch):
    (tmp_path / 'msff-timm-space-mine').mkdir()
    live, of_live = forked(hold_folder, str(tmp_path))
    killed, of_killed = forked(hold_folder, str(tmp_path))
    of_live, of_killed = Path(of_live), Path(of_killed)
    try:
        killed.kill()
        killed.join()
        assert (of_live / 'photo.jpg').exists() and (of_killed / 'photo.jpg').exists()
        monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
        with temporary_folder() as own:
            assert own.is_dir() and own.parent == tmp_path and own.stat().st_mode & 0o77 == 0
            assert (of_live / 'photo.jpg').exists() and not of_killed.exists()
    finally:
        live.kill()
        live.join()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {'msff-timm-space-mine', of_live.name, of_live.with_suffix('.lock').name}
