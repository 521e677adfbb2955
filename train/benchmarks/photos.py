"""Makes the tables that the weights for photos are trained on: VOC's images, and COCO's with the labels that VOC knows.

`python train/benchmarks/photos.py --voc VOCdevkit --coco COCO --output FOLDER`

`FOLDER/train.csv` lists the training images of both, `FOLDER/validation.csv` the validation images of VOC alone. A
label is 1 (present), 0 (absent) or -1 (unannotated). It is unannotated where VOC has it as difficult in all its
objects, and where its largest instance in COCO covers less than a three-hundredth of the image, which VOC often has as
difficult.
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
    of_coco = [
        msff_timm.data.load('coco2014', split, config.coco, keep_unlabelled=True) for split in ('train', 'validation')
    ]
    for part in of_coco:
        matched = match_labels(msff_timm.data.label_names(part), VOC_LABELS)
        if missing := [name for name in VOC_LABELS if name not in matched]:
            lacking = ', '.join(missing)
            raise InputError(f'{config.coco}: its categories lack {lacking}; give COCO 2014 as it is published.')
    print('\n'.join(describe_matches(matched)))
    train, validation = (msff_timm.data.load('voc2012', split, config.voc) for split in ('train', 'validation'))
    above = os.path.commonpath([os.path.abspath(config.voc), os.path.abspath(config.coco)])
    write(Path(config.output, 'train.csv'), [(train, 0), *((part, SMALLEST) for part in of_coco)], above)
    write(Path(config.output, 'validation.csv'), [(validation, 0)], above)
    print(f'Give train.py --data.root {config.output} --data.image_root {os.path.relpath(above)}')


def write(path: Path, parts: list[tuple[Dataset, float]], above: str) -> None:
    """Writes the table of some data sets, each with its least share of the image for `rows`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(['image', *VOC_LABELS])
            for dataset, smallest in parts:
                writer.writerows(rows(dataset, smallest, above))
    except OSError as e:
        raise InputError(f'{path}: cannot be written ({e.strerror or e}).') from None
    print(f'{path}: {" + ".join(str(len(dataset)) for dataset, _ in parts)} images.')


def rows(dataset: Dataset, smallest: float, above: str) -> Iterator[list]:
    """Gives the path of each image and its states of VOC's labels.

    Args:
        dataset: Images with labels of any names that match VOC's.
        smallest: Share of the image below which a label is unannotated.
        above: Folder that the paths start from.
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
