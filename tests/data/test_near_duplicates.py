import hashlib
import io

import numpy as np
import torch
from PIL import Image, ImageOps

from msff_timm.data import load
from msff_timm.data.images import undecoded
from msff_timm.data.inspect import near_duplicates
from msff_timm.data.inspect.near_duplicates import content_digest, group_similar, layout


def unit(vectors):
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def none(count):
    """Layouts that agree with no other."""
    return np.zeros((count, 256), np.float32)


def test_group_similar_finds_the_chains_of_similar_pairs_over_all_blocks(monkeypatch):
    monkeypatch.setattr(near_duplicates, 'BLOCK', 7)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 30))
    for copy, of in ((39, 0), (20, 39), (13, 14), (6, 33), (5, 4)):
        vectors[copy] = vectors[of] + 0.1 * rng.normal(size=30)
    vectors = unit(vectors)
    expected = list(range(40))
    for i in range(40):  # by hand, pair by pair
        for j in range(i):
            if vectors[i] @ vectors[j] >= 0.9:
                expected = [min(expected[i], expected[j]) if n in (expected[i], expected[j]) else n for n in expected]
    assert {n for n in expected if expected.count(n) > 1} == {0, 4, 6, 13}
    assert group_similar(vectors, none(40), 0.9).tolist() == expected


def test_group_similar_asks_less_of_images_of_the_same_layout():
    angle = np.arccos(0.85)
    vectors = unit([[1, 0], [np.cos(angle), np.sin(angle)]])
    small = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pairs = {'same': small, 'mirrored': small.flip(-1), 'upside down': small.flip(-2), 'other': other}
    grouped = {
        name: group_similar(vectors, torch.cat([layout(small), layout(image)]).numpy(), 0.93).tolist() == [0, 0]
        for name, image in pairs.items()
    }
    assert grouped == {'same': True, 'mirrored': True, 'upside down': False, 'other': False}
    assert group_similar(vectors, none(2), 0.93).tolist() == [0, 1]
    assert group_similar(vectors, none(2), 0.84).tolist() == [0, 0]


def test_group_similar_leaves_out_images_without_embedding():
    vectors = np.zeros((3, 4), np.float32)
    vectors[2, 0] = 1
    assert group_similar(vectors, none(3), 0.93).tolist() == [0, 1, 2]


def test_layout_of_photos_outlives_compression_and_size(coco_root):
    dataset = load('coco2014', 'train', str(coco_root), 12)
    photos = [image.convert('RGB') for image in dataset['image'][:]]

    def pixels(image):
        return torch.from_numpy(np.array(image.resize((96, 96), Image.Resampling.BICUBIC))).permute(2, 0, 1)[None]

    def compress(image):
        file = io.BytesIO()
        ImageOps.grayscale(image.resize((image.width // 3, image.height // 3))).save(file, 'JPEG', quality=30)
        return Image.open(file).convert('RGB')

    originals = torch.cat([layout(pixels(photo)) for photo in photos])
    copies = torch.cat([layout(pixels(compress(photo))) for photo in photos])
    correlation = (originals @ copies.T).numpy()
    expected = np.corrcoef(originals, copies)[:12, 12:]
    np.testing.assert_allclose(correlation, expected, atol=1e-5)
    assert correlation.diagonal().min() > near_duplicates.SAME_LAYOUT
    assert correlation[~np.eye(12, dtype=bool)].max() < near_duplicates.SAME_LAYOUT


def test_content_digest_is_the_sha256_of_file_row_and_drawing(tmp_path):
    Image.new('RGB', (8, 8), 'red').save(tmp_path / 'a.png')
    content = (tmp_path / 'a.png').read_bytes()
    expected = hashlib.sha256(content).digest()
    assert content_digest({'image': {'path': str(tmp_path / 'a.png'), 'bytes': None}}) == expected
    assert content_digest({'image': {'path': 'gone.png', 'bytes': content}}) == expected
    scenes = undecoded(load('scenes', 'train', size=2))
    assert content_digest(scenes[0]) == hashlib.sha256(scenes[0]['image'].tobytes()).digest()
    assert content_digest(scenes[0]) != content_digest(scenes[1])
