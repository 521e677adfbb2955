import json

import numpy as np
import pytest
from PIL import Image

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.inference import similar
from msff_timm.inference.bulk import Settings, run
from msff_timm.inference.similar import Embeddings
from msff_timm.inference.sources import Sources
from msff_timm.inference.tasks import EmbedTask
from msff_timm_cli import commands as cli

MODEL = 'msff_test_resnet'


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """Embeddings of 20 images; image 7 is image 3 as JPEG, and one file is damaged."""
    folder = tmp_path_factory.mktemp('similar')
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{number:02}.png')
    Image.open(folder / '03.png').resize((75, 75)).save(folder / '07.jpg', quality=80)
    (folder / '07.png').unlink()
    (folder / '10.png').write_bytes(b'')
    task = EmbedTask(hub.load(MODEL))
    task.header['model'] = MODEL
    run(task, Sources([str(folder)]), folder / 'e.parquet', Settings(workers=0))
    return folder / 'e.parquet'


def test_embeddings_leave_out_unreadable_images(file):
    embeddings = Embeddings(file)
    assert len(embeddings.images) == 19 and f'{file.parent}/10.png' not in embeddings.images
    assert np.linalg.norm(embeddings.vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_nearest_ranks_by_cosine_similarity(file):
    embeddings = Embeddings(file)
    vectors = embeddings.vectors.astype(float)
    for number, image in enumerate(embeddings.images):
        expected = sorted(range(19), key=lambda k: -vectors[k] @ vectors[number])[:4]
        found = embeddings.nearest(embeddings.find(image), 4)
        assert [name for name, _ in found] == [embeddings.images[k] for k in expected]
        assert found[0] == (image, pytest.approx(1, abs=1e-5))
    assert embeddings.nearest(embeddings.find(f'{file.parent}/03.png'), 2)[1][0] == f'{file.parent}/07.jpg'


@pytest.mark.parametrize('block', [1, 4, 512])
def test_near_duplicates_equal_a_comparison_of_all_pairs(file, monkeypatch, block):
    monkeypatch.setattr(similar, 'BLOCK', block)
    embeddings = Embeddings(file)
    vectors = embeddings.vectors.astype(float)
    for least in (0.5, 0.9, 0.99):
        expected = {}
        for number in range(1, 19):
            best = max(range(number), key=lambda k: vectors[k] @ vectors[number])
            if vectors[best] @ vectors[number] >= least:
                expected[embeddings.images[number]] = embeddings.images[best]
        assert {image: other for image, other, _ in embeddings.near_duplicates(least)} == expected
    assert expected == {f'{file.parent}/07.jpg': f'{file.parent}/03.png'}


def test_embed_computes_what_the_file_holds(file):
    embeddings, image = Embeddings(file), f'{file.parent}/05.png'
    assert embeddings.embed(hub.load(MODEL), image) == pytest.approx(embeddings.find(image), abs=1e-5)
    with pytest.raises(InputError, match='its embeddings are of other weights'):
        embeddings.embed(hub.load('msff_efficientnet_lite0'), image)


def test_similar_command_prints_images(file, tmp_path, capsys):
    image = str(file.parent / '03.png')
    assert cli.main(['similar', str(file), image, '-k', '2']) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f'1.000  {image}' and second.endswith('/07.jpg')
    Image.open(image).save(tmp_path / 'copy.png')
    assert cli.main(['similar', str(file), str(tmp_path / 'copy.png'), '-k', '1', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == [{'image': image, 'similarity': pytest.approx(1, abs=1e-5)}]
    assert cli.main(['similar', str(file), '--near-duplicates', '0.99']) == 0
    printed = capsys.readouterr()
    assert printed.out.split()[1:] == [f'{file.parent}/07.jpg', image]
    assert '1 of 19 images are near-duplicates of an earlier one.' in printed.err


def test_embeddings_refuse_other_files(tmp_path):
    (tmp_path / 'x.parquet').write_text('no table')
    for name in ('x.parquet', 'gone.parquet'):
        with pytest.raises(InputError, match='cannot be read as a file of msff-timm embed'):
            Embeddings(tmp_path / name)
