"""What `msff-timm data issues` prints and writes: tables of label errors and duplicates, and sheets of their images."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..data.figures import COLUMNS, DPI, GAP, Tile, draw_sheet, short, thumbnail
from ..data.text import join_names
from ..errors import InputError, one_line
from ..files import replace_file
from .figures import save_figure
from .issues import Issues, Source
from .label_issues import FEW, unjudged

__all__ = ['describe', 'write']

PRINTED = 10  # label errors, and groups of duplicates
DRAWN = {'wrong': 24, 'missing': 24, 'unannotated': 12}  # images of the sheet
DRAWN_GROUPS = 10
HEADINGS = {
    'wrong': 'given as present, likely wrong',
    'missing': 'given as absent, likely present',
    'unannotated': 'unannotated, likely present',
}


def describe(issues: Issues, source: Source) -> Iterator[str]:
    """Yields the lines to print: duplicates across splits first, then label errors."""
    across = [group for group in issues.duplicates if group.is_across]
    exact = sum(group.is_exact for group in issues.duplicates)
    yield (
        f'{len(issues.duplicates)} groups of duplicate images ({exact} exact, {len(issues.duplicates) - exact} near),'
        f' {len(across)} of them across splits'
    )
    for group in across[:PRINTED]:
        images = join_names([f'{source.places[n][0]} {source.image_ids[n]}' for n in group.images], 4)
        yield f'  {"exact" if group.is_exact else "near "}  {images}'
    if issues.unreadable:
        yield f'left out, cannot be read: {join_names([source.image_ids[n] for n in issues.unreadable], 5)}'
    few = unjudged(source.targets)
    if few.any():
        names = join_names([name for name, is_few in zip(source.label_names, few, strict=True) if is_few], 5)
        yield f'not judged, fewer than {FEW} present or absent entries: {names}'
    wrong, missing, unannotated = (f'{issues.num_labels[kind]:,}' for kind in HEADINGS)
    annotated = int((source.targets >= 0).sum())
    yield f'of {annotated:,} labels: {wrong} present ones likely wrong, {missing} absent ones likely missing'
    if issues.num_labels['unannotated']:
        yield f'of {source.targets.size - annotated:,} unannotated labels: {unannotated} likely present'
    for rank, issue in enumerate(issues.labels[:PRINTED], 1):
        split, image_id = source.places[issue.image][0], source.image_ids[issue.image]
        name = source.label_names[issue.label]
        yield f'{rank:>4}  {issue.kind:11}  {issue.probability:.3f}  {name}  {split} {image_id}'


def write(issues: Issues, source: Source, folder: str | Path) -> list[Path]:
    """Writes `label_issues.csv`, `duplicates.csv` and a sheet of images beside each.

    Returns:
        Paths of the files; of a sheet only if there is an image on it.

    Raises:
        InputError: A file cannot be written.
    """
    folder = Path(folder)
    sheets = {'label_issues.png': _label_tiles(issues, source), 'duplicates.png': _duplicate_tiles(issues, source)}
    try:
        _write_csv(folder / 'label_issues.csv', _label_rows(issues, source))
        _write_csv(folder / 'duplicates.csv', _duplicate_rows(issues, source))
        for name, tiles in sheets.items():
            if tiles:
                save_figure(draw_sheet(tiles), folder / name, bbox_inches='tight', pad_inches=GAP / DPI)
            else:
                (folder / name).unlink(missing_ok=True)  # of an earlier call
    except OSError as e:
        raise InputError(f'{folder}: cannot be written ({one_line(e)}).') from None
    names = ('label_issues.csv', 'label_issues.png', 'duplicates.csv', 'duplicates.png')
    return [folder / name for name in names if sheets.get(name, True)]


def _write_csv(path: Path, rows: Iterable[list]) -> None:
    with replace_file(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(rows)


def _label_rows(issues: Issues, source: Source) -> Iterator[list]:
    yield ['rank', 'kind', 'label', 'given', 'probability', 'score', 'split', 'image', 'file']
    for rank, issue in enumerate(issues.labels, 1):
        name, numbers = source.label_names[issue.label], (f'{issue.probability:.4f}', f'{issue.score:.3f}')
        yield [rank, issue.kind, name, issue.given, *numbers, *_place(source, issue.image)]


def _duplicate_rows(issues: Issues, source: Source) -> Iterator[list]:
    yield ['group', 'kind', 'across_splits', 'similarity', 'labels', 'split', 'image', 'file']
    for number, group in enumerate(issues.duplicates, 1):
        about = [number, 'exact' if group.is_exact else 'near', 'yes' if group.is_across else 'no']
        for image, similarity in zip(group.images, group.similarities, strict=True):
            yield [*about, f'{similarity:.4f}', '|'.join(source.labels(image)), *_place(source, image)]


def _place(source: Source, image: int) -> list[str]:
    """Returns split, name and file of an image; the file is empty if the image is within a table."""
    found = source.row(image)['image']
    path = found['path'] if isinstance(found, dict) and found['bytes'] is None else ''
    return [source.places[image][0], source.image_ids[image], path]


def _label_tiles(issues: Issues, source: Source) -> dict[str, Sequence[Tile]]:
    tiles: dict[str, Sequence[Tile]] = {}
    for kind, most in DRAWN.items():
        drawn = [issue for issue in issues.labels if issue.kind == kind][:most]
        found = f'{HEADINGS[kind]}: {len(drawn)} of {issues.num_labels[kind]:,}'
        tiles[found] = [
            _tile(source, issue.image, f'{short(source.label_names[issue.label])}  {issue.probability:.3f}')
            for issue in drawn
        ]
    return {heading: found for heading, found in tiles.items() if found}


def _duplicate_tiles(issues: Issues, source: Source) -> dict[str, Sequence[Tile]]:
    return {
        f'{number}: {"exact" if group.is_exact else "near"}{", across splits" * group.is_across}': [
            _tile(source, image, f'{similarity:.3f}')
            for image, similarity in zip(group.images[:COLUMNS], group.similarities, strict=False)
        ]
        for number, group in enumerate(issues.duplicates[:DRAWN_GROUPS], 1)
    }


def _tile(source: Source, image: int, first: str) -> Tile:
    labels = ', '.join(map(short, source.labels(image))) or '(no label)'
    lines = [f'{source.places[image][0]} {source.image_ids[image]}', labels]
    return Tile(thumbnail(source.row(image)), [(first, 'black'), *((line[:40], '0.4') for line in lines)])
