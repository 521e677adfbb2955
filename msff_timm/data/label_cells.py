"""What the cells of a column of labels mean: the state of one label, or several labels in text or a list."""

import ast
import json
import math
import re
import warnings
from collections.abc import Collection, Iterable, Sequence

from ..errors import InputError, unknown
from .records import is_one_line, shown

__all__ = [
    'MEANINGS',
    'MISSING',
    'NONE',
    'NOT_LABELS',
    'cells_note',
    'check_names',
    'check_settings',
    'encode',
    'has_comma_lists',
    'is_label',
    'is_missing',
    'labels_note',
    'name_vector',
    'read_list',
    'read_state',
    'read_states',
    'split_labels',
    'state_of',
]

# Columns of other things that tools and public data sets write beside one column for each label. In small letters; also
# never a label is a column without a name or one that pandas names `Unnamed: 0` or `__index_level_0__`.
NOT_LABELS = tuple(
    # names, places and sizes of the image
    'area coco_url date_captured file file_name file_path filename filepath flickr_url fname guid height id image'
    ' image_file image_height image_id image_name image_path image_url image_width imageid imagename imagepath img'
    ' img_id img_name img_path license md5 path sha1 sha256 uri url uuid width'
    # the split, and other ways to part the rows
    ' cv_fold data_split fold folds is_test is_train is_training is_val is_valid is_validation kfold partition phase'
    ' split subset usage'
    # numbers of rows
    ' index level_0 level_1 row_id rowid'
    # what else annotation tools and this package write
    ' annotator annotator_id created_at crowd ignore is_crowd iscrowd timestamp updated_at worker_id'.split()
)
OF_PANDAS = re.compile(r'(unnamed: \d+(\.\d+)?(_level_\d+)?|__index_level_\d+__)?')
# What pandas.read_csv, and so `datasets`, takes for missing
MISSING = frozenset(
    ['', '#N/A', '#N/A N/A', '#NA', '-1.#IND', '-1.#QNAN', '-NaN', '-nan', '1.#IND', '1.#QNAN', '<NA>', 'N/A', 'NA']
    + ['NULL', 'NaN', 'None', 'n/a', 'nan', 'null']
)
MEANINGS = ('unannotated', 'absent')  # of -1 and of blank
NONE = 'none'  # as a delimiter: each text is one label

QUOTED = r"""[bBuU]?(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
ITEM = re.compile(
    rf"""\s*(?:(?:np|numpy)\.\w+\(\s*)?(?:{QUOTED}|(?P<bare>[^\s,'"\[\](){{}}:]+))\s*\)?\s*(?P<comma>,|$|(?<=[\s'")]))""",
    re.DOTALL,
)
CALL = re.compile(
    r'(?:set|frozenset|list|tuple|array|Index|tensor|np\.array|numpy\.array)'
    r'\(\s*(?P<inner>|[\[({].*[\])}])\s*(?:,\s*dtype=[^()]*)?\)',
    re.DOTALL,
)
BRACKETS = {'[': ']', '(': ')', '{': '}'}
NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|True|False|true|false')


class Bare(str):
    """An item of a list in text that has no quotes: a number, or what a tool wrote without them."""


def check_settings(label_delimiter: str | None, minus_one: str, blank: str) -> None:
    """Raises InputError unless the settings of how cells are read are of those that there are."""
    if label_delimiter == '':
        raise InputError(
            'data.label_delimiter is empty: must be the text between two labels, or none where each text is one label.'
        )
    for setting, meaning in (('minus_one', minus_one), ('blank', blank)):
        if meaning not in MEANINGS:
            raise unknown(f'data.{setting}', str(meaning), MEANINGS)


def check_names(setting: str, names: Iterable[str] | None) -> None:
    """Raises InputError unless the names that a setting or a file lists differ, are not blank, and take one line."""
    seen = set()
    for name in names or ():
        if not name.strip():
            raise InputError(f'{setting}: a name is empty: name it or leave it out.')
        if not is_one_line(name):
            raise InputError(f'{setting}: the name {shown(name)} has a line break or NUL in it.')
        if name in seen:
            raise InputError(f'{setting}: {shown(name)} is there twice.')
        seen.add(name)


def is_label(column: str, label_names: Collection[str] | None) -> bool:
    """Whether a column of a table that has one for each label is a label's, by its name."""
    if label_names is not None and column in label_names:
        return True
    name = column.strip().lower()
    return not (name.replace(' ', '_') in NOT_LABELS or OF_PANDAS.fullmatch(name))


def labels_note(labels: Sequence[str], others: Sequence[str]) -> str:
    """Puts into a line which columns are labels."""
    line = f'labels: {len(labels)} column{"s" if len(labels) > 1 else ""} ({_some(labels)})'
    return line + (f'; not labels: {_some([name or "(no name)" for name in others])}' if others else '')


def _some(names: Sequence[str], most: int = 20) -> str:
    return ', '.join(names[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')


# --- the state of one label


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN, or a text that pandas reads as missing."""
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or value != value


def state_of(value: object) -> int | None:
    """Returns 1, 0 or -1 for a number, boolean or text of this value; None for anything else."""
    text = str(value).strip().lower()
    if text in ('true', 'false'):
        return int(text == 'true')
    try:
        number = float(text.replace(',', '.'))
    except ValueError:
        return None
    return int(number) if number in (1, 0, -1) else None


def read_state(value: object, where: str, minus_one: str = 'unannotated', blank: str = 'unannotated') -> int:
    """Reads a cell of a column for one label: 1 present, 0 absent, -1 unannotated.

    Args:
        value: Content of the cell.
        where: File, row and column, for the message.
        minus_one: Meaning of -1: `unannotated` or `absent`.
        blank: Meaning of an empty cell: `unannotated` or `absent`.

    Raises:
        InputError: It is none of these.
    """
    if is_missing(value):
        return -1 if blank == 'unannotated' else 0
    state = None if isinstance(value, (list, dict)) else state_of(value)
    if state is None:
        raise InputError(f'{where} is {shown(value)}, not 1, 0, -1 or empty (data.label_columns picks the labels).')
    return 0 if state == -1 and minus_one == 'absent' else state


def read_states(values: Sequence[object], where: object, minus_one: str, blank: str) -> list[int]:
    """Reads a whole column for one label; `where` gives file, row and column of the number of a row."""
    try:
        found = set(values)
    except TypeError:  # lists
        return [read_state(value, where(row), minus_one, blank) for row, value in enumerate(values)]
    states = {}
    for value in found:
        try:
            states[value] = read_state(value, '', minus_one, blank)
        except InputError:
            row = min(row for row, other in enumerate(values) if other == value)
            read_state(value, where(row))
    return [states[value] for value in values]


# --- several labels in a cell


def split_labels(value: object, delimiter: str, where: str, has_commas: bool = False) -> list[str]:
    """Reads a cell of a column of labels: a list of names, a list as tools write it into text, or delimited text.

    Args:
        value: Content of the cell.
        delimiter: Text between two labels; `none` where each text is one label.
        where: File, row and column, for the message.
        has_commas: True where lists without quotes have commas in this column (`has_comma_lists`).

    Raises:
        InputError: It is neither, or a label is there twice.
    """
    parts = _parts(value, delimiter, where, has_commas)
    if not isinstance(parts, list):
        raise InputError(f'{where} is {shown(value)}, neither text nor a list of labels.')
    labels = []
    for part in parts:
        if not isinstance(part, str):
            raise InputError(f'{where} has the label {shown(part)}, which is not text.')
        if not is_one_line(part):
            raise InputError(f'{where} has the label {shown(part)} with a line break or NUL in it.')
        label = str(part).strip()
        if label in labels:
            raise InputError(f'{where} has the label {shown(label)} twice.')
        if label:
            labels.append(label)
    return labels


def _parts(value: object, delimiter: str, where: str, has_commas: bool) -> object:
    if not isinstance(value, str):
        return [] if is_missing_cell(value) else value
    if is_missing(value):
        return []
    items = read_list(value, where, has_commas)
    if items is not None:
        return items if len(items) != 1 or not is_missing(items[0]) else []
    return [value] if delimiter == NONE else value.split(delimiter)


def is_missing_cell(value: object) -> bool:
    """Whether a cell that is no text holds nothing."""
    return value is None or isinstance(value, float) and math.isnan(value)


def has_comma_lists(values: Iterable[object]) -> bool:
    """Whether a column has lists without quotes that commas part, `[traffic light, car]`: then spaces do not."""
    return any(isinstance(value, str) and re.fullmatch(r'\s*[\[{][^"\']*,[^"\']*[\]}]\s*', value) for value in values)


def read_list(text: str, where: str, has_commas: bool = False) -> list[str] | None:
    """Reads a list that Python, pandas, NumPy, JSON or a database wrote into text; no code is evaluated.

    Args:
        text: Content of the cell.
        where: File, row and column, for the message.
        has_commas: True where commas alone part items without quotes; else spaces do where there is no comma.

    Returns:
        Its items, `Bare` those without quotes; null and NaN are left out. None where the text is no list.

    Raises:
        InputError: It begins and ends like one, but is none of labels.
    """
    inner = text.strip()
    while call := CALL.fullmatch(inner):
        inner = call['inner']
        if not inner:
            return []
    is_bracketed = inner[:1] in BRACKETS and inner.endswith(BRACKETS[inner[0]])
    content = inner[1:-1].strip() if is_bracketed else inner
    if not is_bracketed and inner[:1] not in ('"', "'"):
        return None
    if not content:
        return []
    has_quotes = '"' in content or "'" in content
    items = _quoted_items(content) if has_quotes else None
    if not is_bracketed:
        return items if items and not any(isinstance(item, Bare) for item in items) else None
    if items is None and not re.search(r'[\[\](){}]', content) and not re.search(r'["\']\s*:', content):
        # Names without quotes may hold spaces if commas part them, and apostrophes.
        items = [
            Bare(part.strip()) for part in (content.split(',') if has_commas or ',' in content else content.split())
        ]
        items = [item for item in items if item]
        if inner[0] == '(' and not (',' in content and all(NUMBER.fullmatch(item) for item in items)):
            return None  # a remark in brackets
    if items is None or any(isinstance(item, Bare) and item in ('...', '…') for item in items):
        if inner[0] == '(':
            return None
        raise InputError(f'{where} is {shown(text)}, which is no list of labels: write ["one", "two"].')
    return [item for item in items if not (isinstance(item, Bare) and item in MISSING)]


def _quoted_items(content: str) -> list[str] | None:
    items, position = [], 0
    while position < len(content):
        match = ITEM.match(content, position)
        if match is None or match.end() == position:
            return None
        items.append(Bare(match['bare']) if match['quoted'] is None else _unquoted(match['quoted']))
        position = match.end()
    return None if None in items else items


def _unquoted(text: str) -> str | None:
    if '\\' not in text:
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        pass  # Python's, which has other escapes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of escapes that there are not
            return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def cells_note(values: Iterable[object]) -> str:
    """Puts into the end of a line what was read in a way that is not plain; empty where there is nothing to show."""
    values = [value.strip() for value in values if isinstance(value, str)]
    words = set(values) & MISSING - {'', 'nan', 'NaN', '<NA>'}
    note = f', no label where {" or ".join(map(repr, sorted(words)))}' if words else ''
    if not has_comma_lists(values):
        spaced = [
            value for value in values if re.fullmatch(r'[\[{]\s*[^\W\d][^"\',]*\s[^"\',]*[^\s"\',]\s*[\]}]', value)
        ]
        note += f', lists parted by spaces, as {shown(spaced[0])}' if spaced else ''
    return note


def name_vector(values: Sequence[object], label_names: Sequence[str] | None, where: str) -> list[list[str]] | None:
    """Reads a column of vectors of 1 and 0, one for each label: returns the labels of each row, None for other columns.

    Raises:
        InputError: The labels have no names, or another number of them.
    """
    rows = []
    for value in values:
        try:
            items = read_list(value, '') if isinstance(value, str) else value
        except InputError:
            return None
        if not isinstance(items, list) or not all(isinstance(item, (Bare, int, float)) for item in items):
            return None
        rows.append([state_of(item) for item in items])
    if not rows or len(rows[0]) < 2 or any(len(row) != len(rows[0]) or not {0, 1}.issuperset(row) for row in rows):
        return None
    if label_names is None or len(label_names) != len(rows[0]):
        raise InputError(
            f'{where} holds vectors of {len(rows[0])} numbers 0 and 1, as {shown(values[0])}: set data.label_names to'
            f' the {len(rows[0])} names, in their order.'
        )
    return [[name for name, state in zip(label_names, row, strict=True) if state] for row in rows]


def encode(
    labels: Collection[str], ignore: Collection[str], number_of: dict[str, int], where: str
) -> tuple[list[int], list[int]]:
    """Numbers the labels that are present in a row and those that are unannotated.

    Raises:
        InputError: A label has no number, or is both.
    """
    for label in (*labels, *ignore):
        if label not in number_of:
            raise InputError(f'{where}: {unknown("label", label[:80], number_of)}')
        if label in labels and label in ignore:
            raise InputError(f'{where}: the label {shown(label)} is in both labels and ignore: keep one.')
    return sorted(number_of[label] for label in labels), sorted(number_of[label] for label in ignore)
