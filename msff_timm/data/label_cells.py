"""Cells of label columns: the state of one label, or several labels in a list or in text."""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from ..errors import InputError
from .text import is_one_line, quote

__all__ = ['MISSING', 'is_missing', 'read_state', 'read_states', 'read_vectors', 'split_labels', 'state_of']

# Texts that pandas.read_csv, and therefore `datasets`, reads as missing
MISSING = frozenset(
    ['', '#N/A', '#N/A N/A', '#NA', '-1.#IND', '-1.#QNAN', '-NaN', '-nan', '1.#IND', '1.#QNAN', '<NA>', 'N/A', 'NA']
    + ['NULL', 'NaN', 'None', 'n/a', 'nan', 'null']
)
NO_DELIMITER = 'none'  # as a delimiter: each text is one label
BLANK = -2  # state of a missing item of a vector

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
    """Item without quotes of a list in text, e.g. a number."""


# --- the state of one label


def is_missing(value: object) -> bool:
    """Returns whether a cell is empty: null, NaN, or a text that pandas reads as missing."""
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or value != value


def state_of(value: object) -> int | None:
    """Returns 1, 0 or -1 for a number, boolean or text of this value, and None for anything else."""
    text = str(value).strip().lower()
    if text in ('true', 'false'):
        return int(text == 'true')
    try:
        number = float(text.replace(',', '.'))
    except ValueError:
        return None
    return int(number) if number in (1, 0, -1) else None


def read_state(value: object, where: str, minus_one: str = 'unannotated', blank: str = 'unannotated') -> int:
    """Reads a cell of a column that holds one label: 1 present, 0 absent, -1 unannotated.

    Args:
        value: Content of the cell.
        where: File, row and column, for the message.
        minus_one: Meaning of -1: `unannotated` or `absent`.
        blank: Meaning of an empty cell: `unannotated` or `absent`.

    Raises:
        InputError: The cell holds anything else.
    """
    if is_missing(value):
        return -1 if blank == 'unannotated' else 0
    state = None if isinstance(value, (list, dict)) else state_of(value)
    if state is None:
        raise InputError(f'{where} is {quote(value)}: must be 1, 0, -1 or empty; data.label_columns selects labels.')
    return 0 if state == -1 and minus_one == 'absent' else state


def read_states(
    values: Sequence[object],
    numbers: np.ndarray,
    where: Callable[[int], str],
    minus_one: str = 'unannotated',
    blank: str = 'unannotated',
) -> np.ndarray:
    """Reads a whole column that holds one label.

    Args:
        values: Distinct values of the column.
        numbers: Number of the value of each row (N,).
        where: Function that returns file, row and column of a row, for messages.
        minus_one: Meaning of -1, see `read_state`.
        blank: Meaning of an empty cell.

    Returns:
        State of each row (N,).
    """
    states = np.zeros(len(values), np.int8)
    for number, value in enumerate(values):
        try:
            states[number] = read_state(value, '', minus_one, blank)
        except InputError:
            read_state(value, where(int(np.argmax(numbers == number))))
    return states[numbers]


# --- several labels in a cell


def split_labels(value: object, delimiter: str, where: str, has_commas: bool = False) -> list[str]:
    """Reads a cell of several labels: a list of names, a list that a tool wrote as text, or delimited text.

    Whole numbers are names, too: 3 and 3.0 are the label `3`.

    Args:
        value: Content of the cell.
        delimiter: Text between two labels; `none` if each text is one label.
        where: File, row and column, for the message.
        has_commas: True if commas separate the items of lists without quotes, as in `[traffic light, car]`; else spaces
            do where there is no comma.

    Raises:
        InputError: The cell holds neither text or a number nor a list of them.
    """
    parts = _split(value, delimiter, where, has_commas)
    if not isinstance(parts, list):
        raise InputError(f'{where} is {quote(value)}: must be text or a list of labels.')
    return [label for part in parts if (label := _label(part, where))]


def _label(part: object, where: str) -> str:
    if isinstance(part, str):
        label = _stripped(part)
        if label is None:
            raise InputError(f'{where} has the label {quote(part)}, which contains a line break or a NUL character.')
        return label
    if is_missing(part):
        return ''
    if isinstance(part, int) and not isinstance(part, bool) or isinstance(part, float) and part.is_integer():
        return str(int(part))
    raise InputError(f'{where} has the label {quote(part)}, which is neither text nor a whole number.')


@lru_cache(2**16)
def _stripped(text: str) -> str | None:
    text = str(text).strip()
    return text if is_one_line(text) else None


def _split(value: object, delimiter: str, where: str, has_commas: bool) -> object:
    if not isinstance(value, str):
        return [value] if value is None or isinstance(value, (int, float)) else value
    if is_missing(value):
        return []
    items = read_list(value, where, has_commas)
    if items is not None:
        return items if len(items) != 1 or not is_missing(items[0]) else []
    return [value] if delimiter == NO_DELIMITER else value.split(delimiter)


def has_comma_lists(values: Iterable[object]) -> bool:
    """Returns whether a column holds lists whose items have no quotes and are separated by commas."""
    return any(isinstance(value, str) and re.fullmatch(r'\s*[\[{][^"\']*,[^"\']*[\]}]\s*', value) for value in values)


def read_list(text: str, where: str, has_commas: bool = False) -> list[str] | None:
    """Reads a list that Python, pandas, NumPy, JSON or a database wrote as text, without evaluating code.

    Args:
        text: Content of the cell.
        where: File, row and column, for the message.
        has_commas: Commas in the text, see `split_labels`.

    Returns:
        Items without null and NaN; those without quotes are of the type `Bare`. None if the text is not a list.

    Raises:
        InputError: The text begins and ends like a list, but is not a list of labels.
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
        # Names without quotes may contain apostrophes, and spaces if commas separate them.
        parts = content.split(',') if has_commas or ',' in content else content.split()
        items = [Bare(part.strip()) for part in parts if part.strip()]
        if inner[0] == '(' and not (',' in content and all(NUMBER.fullmatch(item) for item in items)):
            return None  # a remark in parentheses
    if items is None or any(isinstance(item, Bare) and item in ('...', '…') for item in items):
        if inner[0] == '(':
            return None
        raise InputError(f'{where} is {quote(text)}, which is not a list of labels: write it as ["one", "two"].')
    return [item for item in items if not (isinstance(item, Bare) and item in MISSING)]


def _quoted_items(content: str) -> list[str] | None:
    items, position = [], 0
    while position < len(content):
        match = ITEM.match(content, position)
        if match is None or match.end() == position:
            return None
        items.append(Bare(match['bare']) if match['quoted'] is None else _unquote(match['quoted']))
        position = match.end()
    return None if None in items else items


def _unquote(text: str) -> str | None:
    if '\\' not in text:
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        pass  # perhaps a string of Python, which has other escapes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about invalid escapes
            return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def cells_note(values: Iterable[object]) -> str:
    """Returns the end of a note on cells that were read in a less obvious way; empty if there are none."""
    values = [value.strip() for value in values if isinstance(value, str)]
    words = set(values) & MISSING - {'', 'nan', 'NaN', '<NA>'}
    note = f', {" or ".join(map(repr, sorted(words)))} means no label' if words else ''
    if not has_comma_lists(values):
        pattern = re.compile(r'[\[{]\s*[^\W\d][^"\',]*\s[^"\',]*[^\s"\',]\s*[\]}]')
        spaced = next(filter(pattern.fullmatch, values), None)
        note += f', lists separated by spaces, e.g. {quote(spaced)}' if spaced else ''
    return note


def read_vectors(
    cells: Sequence[object], minus_one: str = 'unannotated', blank: str = 'unannotated'
) -> np.ndarray | None:
    """Reads a column of vectors that hold the state of each label: lists of 1, 0, -1 and null, also as text.

    Args:
        cells: Cells of the column.
        minus_one: Meaning of -1, see `read_state`.
        blank: Meaning of a missing item or cell.

    Returns:
        States (N, K); None for a column of anything else.
    """
    rows = [None if is_missing(cell) else _vector(cell) for cell in cells]
    lengths = {row if row is None else len(row) for row, cell in zip(rows, cells, strict=True) if not is_missing(cell)}
    if len(lengths) != 1 or None in lengths:
        return None
    empty = np.full(lengths.pop(), BLANK, np.int8)
    states = np.stack([empty if row is None else row for row in rows])
    if minus_one == 'absent':
        states[states == -1] = 0
    states[states == BLANK] = -1 if blank == 'unannotated' else 0
    return states


def _vector(cell: object) -> np.ndarray | None:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            try:
                cell = read_list(cell, '')
            except InputError:
                return None
    if not isinstance(cell, list) or len(cell) < 2:
        return None
    kinds = set(map(type, cell))
    if kinds == {Bare}:
        cell = list(map(state_of, cell))
    elif not kinds <= {int, float, bool, type(None)}:
        return None
    elif None in kinds or float in kinds:
        cell = [BLANK if is_missing(item) else item for item in cell]
    return np.array(cell, np.int8) if {1, 0, -1, BLANK}.issuperset(cell) else None
