"""What the tests of exports share: small images, and the labels of a loaded split by image."""

import io
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from msff_timm.data import label_names, load
from msff_timm.data.exports import FORMATS
from msff_timm.data.exports.tree import read_tree
from msff_timm.errors import InputError

__all__ = ['encoded', 'fails', 'labels_of', 'masked_in', 'draw', 'recognised']


def encoded(number: int, size: int = 8) -> bytes:
    """Returns a PNG of one colour; other numbers give other content."""
    file = io.BytesIO()
    Image.new('RGB', (size, size), (number % 256, number // 256, 7)).save(file, 'png')
    return file.getvalue()


def draw(path: Path, number: int, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, size))
    return path


def labels_of(name: str, split: str, root: object, column: str = 'labels', **settings: object) -> dict[str, set[str]]:
    """Returns the labels of each image of a split by its id; each image is opened."""
    dataset = load(name, split, str(root), **settings)
    names = label_names(dataset)
    return {row['image_id']: {names[label] for label in row[column]} for row in dataset if row['image'].load()}


def masked_in(*arguments: object, **settings: object) -> dict[str, set[str]]:
    return labels_of(*arguments, column='ignore', **settings)


def fails(name: str, root: object, *parts: str, split: str = 'train', **settings: object) -> None:
    """Checks that loading ends in one line that contains all parts."""
    with pytest.raises(InputError) as caught:
        list(load(name, split, str(root), **settings))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


def recognised(name: str, root: Path) -> str | None:
    """Returns the evidence that a folder is of a format."""
    read_tree.cache_clear()
    return import_module(f'msff_timm.data.exports.{FORMATS[name]}').recognise(root)
