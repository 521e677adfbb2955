"""Writes the training tables of the weights for photos: images of VOC, and of COCO with VOC's labels.

`python train/benchmarks/photos.py --voc VOCdevkit --coco COCO --output FOLDER`

`FOLDER/train.csv` lists the training images of both, `FOLDER/validation.csv` the validation images of VOC. A label is
1 (present), 0 (absent) or -1 (unannotated). It is unannotated if all its objects in VOC are difficult, or if its
largest instance in COCO covers less than 1/300 of the image, since VOC often calls such objects difficult.
"""

import msff_timm_cli.startup  # noqa: F401  isort: skip

import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Image

import msff_timm.data
from msff_timm.errors import InputError
from msff_timm.labels import VOC_LABELS, describe_matches, match_labels
from msff_timm.training.commands import run_command
from msff_timm.training.parsing import parse

SMALLEST = 1 / 300  # share of the image


@dataclass
class PhotosConfig:
    """Settings of the tables.

    Args:
        voc: Folder VOCdevkit of VOC 2012, or of a subset in its layout.
        coco: Root of COCO 2014, or of a subset in its layout; all its images are used for training.
        output: Folder of the tables; it is created.
    """

    voc: str
    coco: str
    output: str

    def validate(self) -> None:
        if Path(self.output).exists() and not Path(self.output).is_dir():
            raise InputError(f'output is {self.output}: not a folder; give another one.')


def main() -> None:
    config = parse(PhotosConfig, sys.argv[1:])
    coco_splits = [
        msff_timm.data.load('coco2014', split, config.coco, keep_unlabelled=True) for split in ('train', 'validation')
    ]
    for part in coco_splits:
        matched = match_labels(msff_timm.data.label_names(part), VOC_LABELS)
        if missing := [name for name in VOC_LABELS if name not in matched]:
            raise InputError(f'{config.coco}: no category for {", ".join(missing)}; give COCO 2014 as published.')
    print('\n'.join(describe_matches(matched)))
    train, validation = (msff_timm.data.load('voc2012', split, config.voc) for split in ('train', 'validation'))
    above = os.path.commonpath([os.path.abspath(config.voc), os.path.abspath(config.coco)])
    write(Path(config.output, 'train.csv'), [(train, 0), *((part, SMALLEST) for part in coco_splits)], above)
    write(Path(config.output, 'validation.csv'), [(validation, 0)], above)
    print(f'Give train.py --data.root {config.output} --data.image_root {os.path.relpath(above)}')


def write(path: Path, parts: list[tuple[Dataset, float]], above: str) -> None:
    """Writes the table of several data sets, each with its smallest share of the image, see `rows`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(['image', *VOC_LABELS])
            for dataset, smallest in parts:
                writer.writerows(rows(dataset, smallest, above))
    except OSError as e:
        raise InputError(f'{path}: cannot be written ({e.strerror or e}); choose another output.') from None
    print(f'{path}: {" + ".join(str(len(dataset)) for dataset, _ in parts)} images.')


def rows(dataset: Dataset, smallest: float, above: str) -> Iterator[list]:
    """Yields the path of each image and the states of VOC's labels.

    Args:
        dataset: Images whose label names match VOC's.
        smallest: Share of the image below which a label is unannotated.
        above: Folder that the paths are relative to.
    """
    names = msff_timm.data.label_names(dataset)
    theirs = match_labels(names, VOC_LABELS)
    columns = [names.index(theirs[name]) for name in VOC_LABELS]
    for row in dataset.cast_column('image', Image(decode=False)):
        states = dict.fromkeys(row['ignore'], -1)
        states |= {k: 1 if area >= smallest else -1 for k, area in zip(row['labels'], row['area'], strict=True)}
        image = Path(os.path.relpath(row['image']['path'], above)).as_posix()
        yield [image, *(states.get(column, 0) for column in columns)]


if __name__ == '__main__':
    run_command(main)
