"""Cells of label columns, as Python, NumPy, pandas and JSON write them."""

import ast
import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from datasets.data_files import SPLIT_KEYWORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from msff_timm.data import label_cells, label_lists
from msff_timm.data.columns import is_label
from msff_timm.data.label_cells import read_state, read_states, read_vectors, split_labels
from msff_timm.data.label_lists import find_delimiter, texts_of
from msff_timm.data.table_splits import standard_split
from msff_timm.errors import InputError

names = st.lists(
    st.text(st.characters(codec='utf-8', exclude_categories=('Cc', 'Zl', 'Zp')), min_size=1, max_size=8)
    .map(str.strip)
    .filter(lambda text: text and text not in label_cells.MISSING),
    unique=True,
    max_size=5,
)
quick = settings(deadline=None, max_examples=100)


def read(text, delimiter='|'):
    return split_labels(text, delimiter, 'cell')


@quick
@given(names)
def test_split_labels_reads_lists_of_tools(labels):
    assert read(repr(labels)) == read(repr(tuple(labels))) == labels
    assert read(json.dumps(labels)) == read(json.dumps(labels, ensure_ascii=False)) == labels
    assert sorted(read(repr(set(labels)))) == sorted(read(repr(frozenset(labels)))) == sorted(labels)
    array = np.array(labels, object)
    assert read(repr(list(map(np.str_, labels)))) == read(repr(array)) == labels
    with np.printoptions(threshold=10**6, linewidth=20):
        assert read(str(array)) == labels


@quick
@given(names)
def test_split_labels_reads_lists_of_pandas(labels):
    frame = pd.DataFrame({'labels': [labels, [], None]})
    from_csv = pd.read_csv(pd.io.common.StringIO(frame.to_csv(index=False)), keep_default_na=False)['labels']
    assert [read(text) for text in from_csv] == [labels, [], []]


@pytest.mark.parametrize(
    ('text', 'labels'),
    [
        ('[cat dog]', ['cat', 'dog']),
        ('[cat, traffic light]', ['cat', 'traffic light']),
        ('{cat,dog}', ['cat', 'dog']),
        ('{"traffic light",dog}', ['traffic light', 'dog']),
        ("'cat', 'dog'", ['cat', 'dog']),
        ("'cat'", ['cat']),
        ('["a|b", "c"]', ['a|b', 'c']),
        ("['...', 'c\\.d']", ['...', 'c\\.d']),
        ("['it\\'s', \"rock 'n' roll\"]", ["it's", "rock 'n' roll"]),
        ('["caf\\u00e9", "\\ud83d\\ude00"]', ['café', '😀']),
        ("array(['a', 'b'], dtype='<U1')", ['a', 'b']),
        ("Index(['a', 'b'], dtype='object')", ['a', 'b']),
        ('[3, 17]', ['3', '17']),
        ("['cat', nan, None]", ['cat']),
        ("['cat',]", ['cat']),
        *((text, []) for text in ('[]', '()', '{}', 'set()', '[ ]', "['']", 'nan', 'NaN', 'None', '<NA>', '[nan]')),
        # not lists
        ('(unknown)', ['(unknown)']),
        ('dog (small)', ['dog (small)']),
        ('a [b]', ['a [b]']),
        ('say "hello"', ['say "hello"']),
        ('(a) x|(b)', ['(a) x', '(b)']),
    ],
)
def test_split_labels_of_one_cell(text, labels):
    assert read(text) == labels


@pytest.mark.parametrize('text', ["{'cat': 1}", "[['a'], ['b']]", "['a' ... 'b']", '[1, [2]]', "['a', f(1)]", "['a'"])
def test_split_labels_refuses_other_lists(text):
    if text == "['a'":
        assert read(text) == [text]
        return
    with pytest.raises(InputError, match='not a list of labels'):
        read(text)


def test_split_labels_evaluates_no_code():
    with pytest.raises(InputError):
        read("[__import__('os').getpid()]")
    with pytest.raises(InputError):
        read("['a', open('x')]")


@settings(deadline=None, max_examples=300)
@given(st.text('[](){}\'", ab\\nx:.1=', max_size=14))
def test_split_labels_agrees_with_python(text):
    try:
        labels = read(text)
    except InputError as e:
        assert len(str(e).splitlines()) == 1
        return
    assert all(label == label.strip() and label for label in labels)
    if not re.fullmatch(r'\[.*\]', text.strip()) or re.search(r'[\'"]\s*[\'"]', text):
        return  # Python joins adjacent strings, NumPy does not
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            theirs = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            return
    if all(isinstance(item, str) and item.strip() and item.isprintable() for item in theirs):
        assert labels == [item.strip() for item in theirs]


@pytest.mark.parametrize('delimiter', ['|', ';', ',', ', ', ' ', '/', '+', '#', '\t', ' | ', '&', '、'])
def test_find_delimiter_between_labels_that_also_occur_alone(delimiter):
    rows = [['scab', 'rust'], ['scab'], ['rust', 'complex'], ['complex', 'scab', 'rust'], ['rust'], ['complex']]
    texts = [delimiter.join(row) for row in rows]
    found, note = find_delimiter(texts, None, 'table')
    assert [split_labels(text, found, '') for text in texts] == rows
    assert 'data.label_delimiter' in note and 'scab' in note


def test_find_delimiter_between_labels_in_many_combinations():
    """As in the Amazon data set of Planet: weather and land use; only `cloudy` occurs alone."""
    generator = np.random.default_rng(0)
    weather, use = ['clear', 'haze', 'partly_cloudy'], ['agriculture', 'bare_ground', 'habitation', 'road', 'water']
    texts = ['cloudy']
    for _ in range(300):
        more = [name for name in use if generator.random() < 0.4]
        texts.append(' '.join(sorted([generator.choice(weather), 'primary', *more])))
    assert find_delimiter(texts, None, 'table')[0] == ' '


@pytest.mark.parametrize(
    'texts',
    [
        ['traffic light', 'car', 'fire hydrant'],
        # names of several words in COCO
        ['hot dog', 'dog', 'teddy bear', 'bear', 'fire hydrant', 'wine glass', 'cell phone', 'hair drier', 'tv'],
        ['C', 'C++', 'C#'],
        ['HER2+', 'HER2-'],
        ['partly_cloudy', 'cloudy', 'T-shirt', 'a.b'],
        ['On/Off', 'R&B'],
    ],
)
def test_find_delimiter_keeps_names_of_several_words(texts):
    assert find_delimiter(texts, None, 'table')[0] == 'none'


@pytest.mark.parametrize(
    'texts',
    [
        ['cat dog', 'cat bird', 'fish'],
        ['red apple', 'green apple', 'pear'],
        ['cat,dog', 'bird'],
        ['tench, Tinca tinca', 'goldfish, Carassius auratus'],
        ['food/pizza', 'food/burger', 'drink'],
        ['cat-dog', 'cat', 'dog'],
        ['a, b;c', 'a, b', 'a;b', 'b', 'a'],
    ],
)
def test_find_delimiter_refuses_ambiguous_texts(texts):
    with pytest.raises(InputError, match='^table: .* may be one label or several: set data.label_delimiter') as caught:
        find_delimiter(texts, None, 'table')
    assert any(repr(text) in str(caught.value) for text in texts)


def test_find_delimiter_uses_label_names():
    assert find_delimiter(['cat dog', 'bird'], ['bird', 'cat', 'dog'], 'table')[0] == ' '
    assert find_delimiter(['cat dog', 'bird'], ['bird', 'cat dog'], 'table')[0] == 'none'
    assert find_delimiter(['cat-dog'], ['cat', 'dog'], 'table')[0] == '-'
    assert find_delimiter(['cat,dgo', 'dog'], ['cat', 'dog'], 'table')[0] == ','  # the typo is reported later
    with pytest.raises(InputError, match="'NA' of data.label_names"):
        find_delimiter(['cat'], ['cat', 'NA'], 'table')


def test_texts_of_skips_lists_and_missing_cells():
    assert list(texts_of(['a b', "['c d']", 'nan', None, 3.0, ['e f'], "{'a': 1}"])) == ['a b']


@pytest.mark.parametrize('minus_one', ['unannotated', 'absent'])
@pytest.mark.parametrize('blank', ['unannotated', 'absent'])
def test_read_state_interprets_minus_one_and_blank(minus_one, blank):
    of_minus_one, of_blank = (-1 if meaning == 'unannotated' else 0 for meaning in (minus_one, blank))
    states = {'1': 1, '0': 0, '-1': of_minus_one, '1.0': 1, '-1.00': of_minus_one, '0,0': 0, ' TRUE ': 1, 'False': 0}
    states |= {'1e+00': 1, '': of_blank, 'nan': of_blank, 'NaN': of_blank, 'None': of_blank, '<NA>': of_blank}
    for text, state in states.items():
        assert read_state(text, '', minus_one, blank) == state
    values = [1, 0, -1, 1.0, -1.0, True, False, None, float('nan'), np.float32(1), np.int8(-1)]
    expected = [1, 0, of_minus_one, 1, of_minus_one, 1, 0, of_blank, of_blank, 1, of_minus_one]
    assert [read_state(value, '', minus_one, blank) for value in values] == expected
    assert read_states(values, np.arange(len(values)), None, minus_one, blank).tolist() == expected
    for value in ('2', 'yes', 'inf', [], {}, 0.5):
        with pytest.raises(InputError, match='^cell is '):
            read_state(value, 'cell', minus_one, blank)


def test_is_label_refuses_columns_of_tools():
    for name in (
        'is_valid',
        'fold',
        'Fold',
        'ID',
        'Unnamed: 0',
        'Unnamed: 0.1',
        'level_0',
        '__index_level_0__',
        'url',
        '',
    ):
        assert not is_label(name, None)
        assert is_label(name, ['cat', name])
    for name in ('cat', 'folder', 'validity', 'unnamed', 'No Finding'):
        assert is_label(name, None)


def test_standard_split_accepts_names_of_datasets():
    for split, keywords in SPLIT_KEYWORDS.items():
        for keyword in keywords:
            for name in (keyword, keyword.upper(), f' {keyword.title()} '):
                assert standard_split(name) == str(split)
    assert standard_split('trane') is standard_split(None) is standard_split(1) is None


def test_read_vectors_returns_states():
    rows = ['[0, 1, 1]', '[1. 0. 0.]', [0, 0, -1], 'tensor([1, 1, 1])', '[True, False, False]', [1, None, 0.0], None]
    states = [[0, 1, 1], [1, 0, 0], [0, 0, -1], [1, 1, 1], [1, 0, 0], [1, -1, 0], [-1, -1, -1]]
    assert read_vectors(rows).tolist() == states
    absent = read_vectors(rows, minus_one='absent', blank='absent').tolist()
    assert absent == [[max(state, 0) for state in row] for row in states]
    others = (['[0, 1]', '[3]'], ["['0', '1']"], ['[0]', '[1]'], ['[0, 2]'], [[0, 2]], ['a'], [], [['a', 'b']], [None])
    for cells in (*others, [[10**400, 1]], ['[' * 100_000], [[0.5, 1]], [[0, 1], 3], [[[0], [1]]]):
        assert read_vectors(cells) is None
    with np.printoptions(threshold=10**6, linewidth=20):
        states = np.random.default_rng(0).integers(-1, 2, (5, 300))
        assert (read_vectors(list(map(str, states))) == states).all()
    assert (read_vectors([json.dumps(row) for row in states.tolist()]) == states).all()


def test_split_labels_reads_whole_numbers_as_names():
    assert read([3, 17.0, 'x', None, float('nan'), -1]) == ['3', '17', 'x', '-1']
    assert (read(3), read(4.0), read(None), read(float('nan')), read(10**30)) == (['3'], ['4'], [], [], [str(10**30)])
    for value in (True, [True], 0.5, float('inf'), [[1]], {'a': 1}, [{}]):
        with pytest.raises(InputError, match='^cell '):
            split_labels(value, '|', 'cell')


def test_find_delimiter_reads_a_sample_of_much_text(monkeypatch):
    rows = [f'{a},{b}' for a in range(300) for b in range(300)]
    assert find_delimiter(rows, None, 'table')[0] == ','
    monkeypatch.setattr(label_lists, 'MOST_EVIDENCE', 10_000)
    assert find_delimiter(rows, None, 'table')[0] == ','
    assert find_delimiter(rows, list(map(str, range(300))), 'table')[0] == ','
