"""Makes the tables that the weights for photos are trained on: VOC's images, and COCO's with the labels that VOC knows.

`python train/photos.py --voc VOCdevkit --coco COCO --output FOLDER`

`FOLDER/train.csv` lists the training images of both, `FOLDER/validation.csv` the validation images of VOC alone. A
label is 1 (present), 0 (absent) or -1 (unannotated). It is unannotated where VOC has it as difficult in all its
objects, and where its largest instance in COCO covers less than a three-hundredth of the image, which VOC often has as
difficult.
"""

import interruption  # noqa: F401  isort: skip

import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Image

import msff_timm.data
from config import parse
from engine import run_command
from msff_timm.errors import InputError
from msff_timm.labels import VOC_LABELS, describe_matches, match_labels

SMALLEST = 1 / 300  # share of the image


@dataclass
class PhotosConfig:
    """The images.

    Args:
        voc: Folder VOCdevkit of VOC 2012, or of a subset in its layout.
        coco: Root of COCO 2014, of which all images are for training, or of a subset in its layout.
        output: Folder of the tables, which is made.
    """

    voc: str
    coco: str
    output: str

    def validate(self) -> None:
        if Path(self.output).exists() and not Path(self.output).is_dir():
            raise InputError(f'output is {self.output}: is no folder; give another one.')


def main() -> None:
    config = parse(PhotosConfig, sys.argv[1:])
    parts = [msff_timm.data.load('coco2014', split, config.coco) for split in ('train', 'validation')]
    matched = match_labels(msff_timm.data.label_names(parts[0]), VOC_LABELS)
    missing = [name for name in VOC_LABELS if name not in matched]
    if missing:
        raise InputError(f'{config.coco}: its categories lack {", ".join(missing)}; give COCO 2014 as it is published.')
    print('\n'.join(describe_matches(matched)))
    train = msff_timm.data.load('voc2012', 'train', config.voc)
    validation = msff_timm.data.load('voc2012', 'validation', config.voc)
    above = os.path.commonpath([os.path.abspath(config.voc), os.path.abspath(config.coco)])
    write(Path(config.output, 'train.csv'), [train, *parts], above)
    write(Path(config.output, 'validation.csv'), [validation], above)
    print(f'Give train.py --data.root {config.output} --data.image_root {os.path.relpath(above)}')


def write(path: Path, parts: list[Dataset], above: str) -> None:
    """Writes the table of some data sets, whose images lie below a folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(['image', *VOC_LABELS])
            for part in parts:
                writer.writerows(rows(part, above))
    except OSError as e:
        raise InputError(f'{path}: cannot be written ({e.strerror or e}).') from None
    print(f'{path}: {" + ".join(str(len(part)) for part in parts)} images.')


def rows(dataset: Dataset, above: str) -> Iterator[list]:
    """Gives the path of each image below a folder, and its states of VOC's labels."""
    names = msff_timm.data.label_names(dataset)
    theirs = match_labels(names, VOC_LABELS)
    columns = [names.index(theirs[name]) for name in VOC_LABELS]
    smallest = 0 if names == list(VOC_LABELS) else SMALLEST
    for row in dataset.cast_column('image', Image(decode=False)):
        states = dict.fromkeys(row['ignore'], -1)
        states |= {k: 1 if area >= smallest else -1 for k, area in zip(row['labels'], row['area'], strict=True)}
        image = Path(os.path.relpath(row['image']['path'], above)).as_posix()
        yield [image, *(states.get(column, 0) for column in columns)]


if __name__ == '__main__':
    run_command(main)
