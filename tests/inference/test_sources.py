import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from msff_timm.errors import InputError
from msff_timm.inference.sources import Entry, ImageList, Sources, find_images, list_entries, open_entry, open_rows


def png(colour='teal', size=(8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', size, colour).save(file, 'PNG')
    return file.getvalue()


def entries(*paths, **settings) -> list[Entry]:
    sources = Sources([str(path) for path in paths], **settings)
    return list(list_entries(sources, open_rows(sources)))


@pytest.fixture
def folder(tmp_path):
    for name in ('b.png', 'a/z.png', 'a/b/c.png', 'B/1.png', '.hidden/x.png', 'notes.txt', '.d.png'):
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'text' if name == 'notes.txt' else png())
    (tmp_path / 'photos' / 'a' / 'loop').symlink_to(tmp_path / 'photos')
    return tmp_path / 'photos'


def test_find_images_searches_subfolders(folder):
    assert find_images([str(folder)]) == [f'{folder}/b.png']
    found = [path.removeprefix(f'{folder}/') for path in find_images([str(folder)], recursive=True)]
    assert found == ['b.png', 'B/1.png', 'a/z.png', 'a/b/c.png']
    assert [entry.name for entry in entries(folder)] == find_images([str(folder)], recursive=True)


def test_find_images_leaves_out_a_subfolder_that_cannot_be_read(folder, monkeypatch, caplog):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('/B'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert len(find_images([str(folder)], recursive=True)) == 3
    assert f'{folder}/B: left out, cannot be read (Permission denied).' in caplog.text
    with pytest.raises(InputError, match='/B: cannot be read'):
        find_images([f'{folder}/B'], recursive=True)


def test_list_entries_reads_a_list_of_paths(tmp_path):
    names = [os.fsencode(tmp_path / 'a b.png'), os.fsencode(tmp_path) + b'/caf\xe9.png']
    for name in names:
        with open(name, 'wb') as file:
            file.write(png())
    (tmp_path / 'list.txt').write_bytes(b'\r\n'.join([*names, b'', b'gone.png']) + b'\n')
    found = entries(f'@{tmp_path}/list.txt')
    assert [os.fsencode(entry.name) for entry in found] == [*names, b'gone.png']
    assert open_entry(found[1]).size == (8, 6)
    for text, message in ((b'\n', 'names no image'), (None, 'No such file')):
        (tmp_path / 'list.txt').write_bytes(text) if text else (tmp_path / 'list.txt').unlink()
        with pytest.raises(InputError, match=message):
            entries(f'@{tmp_path}/list.txt')


def test_list_entries_reads_tables(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.png').write_bytes(png())
    (tmp_path / 't.csv').write_text('file_name,labels\na.png,cat\nb.png,dog\n')
    (tmp_path / 't.jsonl').write_text('{"photo": "images/a.png"}\n')
    found = entries(tmp_path / 't.csv', image_root=str(tmp_path / 'images'))
    assert [entry.name for entry in found] == ['a.png', 'b.png'] and open_entry(found[0]).size == (8, 6)
    assert entries(tmp_path / 't.jsonl', image_column='photo')[0].path == str(tmp_path / 'images' / 'a.png')
    with pytest.raises(InputError, match=r'has no column image or file_name or path \(found: photo\): name it by --im'):
        entries(tmp_path / 't.jsonl')
    (tmp_path / 't.jsonl').write_text('{"image": "../a.png"}\n')
    with pytest.raises(InputError, match='is not inside'):
        entries(tmp_path / 't.jsonl')
    (tmp_path / 't.jsonl').write_text('{"image": "a.png"}\n{"image": null}\n')
    with pytest.raises(InputError, match="line 2: 'image': must be the path of an image"):
        entries(tmp_path / 't.jsonl')


def test_list_entries_reads_a_webdataset(tmp_path):
    with tarfile.open(tmp_path / 's-000.tar', 'w') as archive:
        for name, content in {'1.png': png('red'), '1.json': b'{}', 'a/2.png': png('blue'), '._1.png': b''}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = entries(tmp_path / 's-000.tar')
    assert [entry.name for entry in found] == [f'{tmp_path}/s-000.tar/{name}' for name in ('1.png', 'a/2.png')]
    assert [open_entry(entry).getpixel((0, 0)) for entry in found] == [(255, 0, 0), (0, 0, 255)]
    (tmp_path / 's-000.tar').unlink()
    with pytest.raises(InputError, match='1.png: cannot be read .No such file'):
        open_entry(found[0])
    (tmp_path / 'bad.tar').write_bytes(b'no archive' * 100)
    with pytest.raises(InputError, match='cannot be read as a .tar file'):
        entries(tmp_path / 'bad.tar')
    (tmp_path / 'x.tar.gz').touch()
    with pytest.raises(InputError, match='is compressed'):
        entries(tmp_path / 'x.tar.gz')


def test_list_entries_reads_a_hub_data_set(tmp_path, monkeypatch):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    colours = ['red', 'lime', 'blue']
    images = [{'bytes': png(colour), 'path': None} for colour in colours]
    features = Features(picture=ImageFeature(), id=Value('string'), x=Value('int64'))
    data = Dataset.from_dict({'picture': images, 'id': ['r', 'g', 'b'], 'x': [1, 2, 3]}, features=features)
    (tmp_path / 'set').mkdir()
    data.to_parquet(tmp_path / 'set' / 'train-00000-of-00001.parquet')
    sources = Sources([f'hub:{tmp_path}/set'])
    rows = open_rows(sources)
    found = list(list_entries(sources, rows))
    assert [entry.name for entry in found] == ['r', 'g', 'b']
    assert [open_entry(entry, rows).getpixel((0, 0)) for entry in found] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    data.remove_columns('id').to_parquet(tmp_path / 'set' / 'test-00000-of-00001.parquet')
    with pytest.raises(InputError, match='has the splits .*: choose one with --split'):
        entries(f'hub:{tmp_path}/set')
    assert entries(f'hub:{tmp_path}/set', split='test')[2].name == f'hub:{tmp_path}/set#2'
    with pytest.raises(InputError, match='2 data sets of the Hub'):
        entries(f'hub:{tmp_path}/set', f'hub:{tmp_path}/set')


def test_image_list_reads_its_parts(tmp_path):
    names = [os.fsdecode(b'caf\xe9'), 'two\nlines', 'plain', 'last', 'one more']
    written = [Entry(name, f'/{name}', number, None) for number, name in enumerate(names)]
    ImageList.write(tmp_path / 'list', iter(written))
    images = ImageList(tmp_path / 'list', part_size=2)
    assert len(images) == 5 and images.num_parts == 3
    assert [images.num_images(part) for part in range(3)] == [2, 2, 1]
    assert [entry for part in (0, 1, 2) for entry in images.read(part)] == written
    assert images.read(1) == written[2:4]


def test_open_entry_decodes_a_large_jpeg_at_reduced_size(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), 20, 0), 20, 1)
    Image.fromarray(pixels).save(tmp_path / 'a.jpg', quality=95)
    entry = Entry('a.jpg', str(tmp_path / 'a.jpg'))
    assert open_entry(entry).size == (1200, 800)
    assert open_entry(entry, at_least=(300, 300)).size == (600, 400)
    assert open_entry(entry, at_least=(500, 500)).size == (1200, 800)
