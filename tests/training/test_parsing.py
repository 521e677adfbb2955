"""Parsing of settings files and command lines by the types of their dataclasses."""

import json
import os
import threading
import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from msff_timm.errors import InputError
from msff_timm.training.config import TrainConfig
from msff_timm.training.evaluate_config import EvaluateConfig
from msff_timm.training.parsing import CONFIGS, LARGEST, find_settings, parse
from msff_timm.training.report import read_settings, write_settings
from msff_timm.training.studies.config import AblateConfig, CompareConfig
from msff_timm.training.yaml12 import MOST_VALUES, read_yaml, write_yaml

CLASSES = (TrainConfig, EvaluateConfig, CompareConfig, AblateConfig)


def all_settings():
    def walk(config_class, prefix=''):
        for f in fields(config_class):
            if is_dataclass(f.type):
                yield from walk(f.type, f'{prefix}{f.name}.')
            else:
                yield f'{prefix}{f.name}', f.type

    return [(config_class, key, kind) for config_class in CLASSES for key, kind in walk(config_class)]


def members(kind):
    return get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


@dataclass
class Section:
    rate: float = 0.1
    names: list[str] | None = None
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Settings:
    output: str = 'out'
    root: str | None = None
    count: int = 1
    most: int | None = None
    flag: bool = False
    section: Section = field(default_factory=Section)

    def validate(self):
        pass


def refused(config_class, *arguments):
    """The message of refused settings."""
    with pytest.raises(InputError) as caught:
        parse(config_class, list(arguments))
    message = str(caught.value)
    assert '\n' not in message and len(message) < 1000
    return message


def read(tmp_path, content, config_class=Settings):
    file = tmp_path / 'mine.yaml'
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return parse(config_class, [f'--config={file}'])


def refused_file(tmp_path, content, config_class=Settings):
    file = tmp_path / 'mine.yaml'
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(config_class, f'--config={file}')
    assert message.startswith(f'{file}: ')
    return message.removeprefix(f'{file}: ')


def nested(key, value):
    for part in reversed(key.split('.')):
        value = {part: value}
    return json.dumps(value)


def test_parse_refuses_null_for_every_setting_that_needs_a_value(tmp_path):
    needed = [(config_class, key) for config_class, key, kind in all_settings() if type(None) not in members(kind)]
    assert len(needed) > 60
    for config_class, key in needed:
        for content in (nested(key, None), f'{key}:', f'{key}: ~'):
            assert refused_file(tmp_path, content, config_class).startswith(f'{key} is null: must be '), key
        assert refused(config_class, f'--{key}=null').startswith(f'{key} is null: must be ')


def test_parse_refuses_values_of_other_types_for_every_setting(tmp_path):
    wrong = {
        int: ('1.0', '2.7', '1e3', 'true', '.nan', '[1]', '{a: 1}', 'many', '010', '1:30', '2026-11-28', '٣'),
        float: ('.nan', '-.inf', '1e999', 'nan', 'true', '[1.0]', '{a: 1}', 'high', '1:30', '1_0', '1' + '0' * 400),
        bool: ('1', '0', '0.0', '[true]', 'maybe', '{}'),
        str: ('2014', '1.0', 'true', '.nan', '[a]', '{a: b}', '""', '"a\\0b"'),
        list[str]: ('a', '1', '{a: b}', '[1]', '[true]', '[null]', '[[a]]', '[a, 2.5]'),
        list[int]: ('1', 'a', '[1.0]', '[true]', '[null]', '[[1]]'),
        list[float]: ('1.0', 'a', '[true]', '[null]', '[[1.0]]', '[.nan]', '[high]'),
        dict[str, Any]: ('1', 'a', '[a]', '{a: .nan}', '{a: [{b: .inf}]}'),
        (bool, str): ('[a]', '{a: b}', '"a\\0b"'),
        (float, str): ('.nan', 'true', '[1.0]', '{a: 1}', '""'),
    }
    for config_class, key, kind in all_settings():
        kinds = tuple(member for member in members(kind) if member is not type(None))
        kind = kinds[0] if len(kinds) == 1 else kinds
        for value in wrong[kind]:
            message = refused_file(tmp_path, f'{key}: {value}', config_class)
            assert message.startswith((f'{key} is ', 'cannot be read')), (key, value)
            if str not in kinds:
                assert key in refused(config_class, f'--{key}', value), (key, value)
    for key in ('output', 'root'):
        assert refused(Settings, f'--{key}=').startswith(f'{key} is empty: must be text')
        assert refused(Settings, f'--{key}=a\0b').startswith(f"{key} is 'a\\x00b': must be text")


def test_parse_reads_numbers_and_switches(tmp_path):
    content = 'count: -3\nmost: 12\nflag: yes\nsection: {rate: 1e-4, args: {a: 1e-4, b: [1, .5, 1.0e+2, on], c: ~}}'
    found = read(tmp_path, content)
    assert (found.count, found.most, found.flag, found.section.rate) == (-3, 12, True, 1e-4)
    assert found.section.args == {'a': 1e-4, 'b': [1, 0.5, 100.0, 'on'], 'c': None}
    for value, expected in (('"1e-4"', 1e-4), ('3', 3.0), ('-0.0', 0.0), ('+1.5E2', 150.0), ('7.', 7.0)):
        found = read(tmp_path, f'section: {{rate: {value}}}').section.rate
        assert type(found) is float and found == expected
    for value, expected in (('"true"', True), ('off', False), ('No', False), ('TRUE', True)):
        assert read(tmp_path, f'flag: {value}').flag is expected
        assert parse(Settings, [f'--flag={value}']).flag is expected


def test_parse_does_not_interpret_text(tmp_path):
    """Text that YAML 1.1, and PyYAML, reads as numbers, dates or truth values."""
    words = ['no', 'off', 'Yes', 'y', '007', '1_000', '0x1F', '12:30', '2026-11-28', '1e', 'nan', 'inf', 'None', '~x']
    assert yaml.safe_load(f'[{", ".join(words)}]') != words
    assert read(tmp_path, f'section: {{names: [{", ".join(words)}]}}').section.names == words
    assert parse(Settings, [f'--section.names=[{", ".join(words)}]']).section.names == words
    for word in (*words, '2014', 'true', '1e5', '[x', '{a: b}', 'a: b', 'a #b', '"x"', '~', '-1', ' '):
        assert parse(Settings, [f'--root={word}']).root == word
        assert parse(Settings, ['--root', word]).root == word
    assert parse(Settings, ['--root=null']).root is None
    assert 'must be text or null. Put text in quotes.' in refused_file(tmp_path, 'root: 2014')
    for word in ('true', '1', '0.5', 'null'):
        message = refused_file(tmp_path, f'section: {{names: [yes, {word}]}}')
        assert message.endswith(f'must be a list of text ([a, b]) or null. Put text in quotes: "{word}".')
    assert read(tmp_path, 'root: "2014"').root == '2014'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('count: 1\nroot: x\ncount: 2', 'cannot be read as settings (count is given twice, in lines 1 and 3).'),
        ('"count": 1\ncount: 1', 'cannot be read as settings (count is given twice, in lines 1 and 2).'),
        ('section: {rate: 1}\nsection: {names: [a]}', '(section is given twice, in lines 1 and 2).'),
        ('section:\n  rate: 1\n  rate: 1', '(rate is given twice, in lines 2 and 3).'),
        ('section: {args: {a: 1, b: {c: 1, c: 2}}}', '(c is given twice, in lines 1 and 1).'),
        ('section: {rate: 1}\nsection.rate: 2', 'section.rate is given twice, once in its section and once with'),
        ('on: 1', "unknown setting 'on': choose from count, "),
        ('1: x', '(line 1: the key 1 is not text; put it in quotes).'),
        ('count: 1\nnull: x', '(line 2: the key null is not text; put it in quotes).'),
        ('section: {args: {true: 1}}', '(line 1: the key true is not text; put it in quotes).'),
        ('[a]: 1', '(line 1: the key ["a"] is not text; put it in quotes).'),
        ('<<: {count: 2}', "unknown setting '<<.count': did you mean count?"),
        ('rate: 1', "unknown setting 'rate': did you mean section.rate?"),
        ('section: {count: 1}', "unknown setting 'section.count': did you mean count?"),
        ('sektion: {rate: 1}', "unknown setting 'sektion.rate': did you mean section.rate?"),
        ('section.rat: 1', "unknown setting 'section.rat': did you mean section.rate?"),
        ('- count: 1', 'settings must be "key: value" lines, not [{"count": 1}].'),
        ('just words', 'settings must be "key: value" lines, not just words.'),
        ('section:', 'section is null: must hold settings, as in "section: {...}", or be left out.'),
        ('section: [rate]', 'section is ["rate"]: must hold settings'),
        ('section:\n\trate: 1', "(line 2: while scanning for the next token found character '\\t'"),
        ('count: 1\n---\ncount: 2', '(line 2: expected a single document'),
        ('root: [', '(line 1: while parsing a flow node'),
        ('root: *x', "(line 1: found undefined alias 'x')."),
        ('root: !!binary aGk=', '(line 1: has the tag !!binary; leave it out).'),
        ('root: !!python/object/apply:os.getcwd []', 'leave it out'),
        ('section: {names: !!set {a, b}}', '(line 1: has the tag !!set; leave it out).'),
        ('root: "\\ud83d"', 'holds half a character'),
        ('root: caf\u00e9'.encode('latin-1'), '(unexpected end of data: character 0xe9 at 9; save it as UTF-8).'),
        ('root: x'.encode('utf-32'), 'cannot be read as settings ('),
        (b'root: a\0b', 'cannot be read as settings (special characters are not allowed: character 0x00 at 7).'),
    ],
)  # fmt: skip
def test_parse_reports_faults_of_a_file(tmp_path, content, message):
    assert message in refused_file(tmp_path, content)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_parse_reads_the_encodings_of_yaml(tmp_path, encoding):
    assert read(tmp_path, 'root: café 😀\r\ncount: 3\r\n'.encode(encoding)) == Settings(root='café 😀', count=3)
    assert read(tmp_path, '# nothing is set\n'.encode(encoding)) == read(tmp_path, b'') == Settings()


def repeated(first, more):
    """Each line repeats the one before ten times."""
    lines = [f'a: &a {first}']
    for old, new in zip('abcdefgh', 'bcdefghi', strict=True):
        lines.append(f'{new}: &{new} {more.format(", ".join([f"*{old}"] * 10))}')
    return '\n'.join(lines)


@pytest.mark.parametrize(
    'content',
    [
        'section: &a {args: *a}',
        'section: {args: {a: &a [1, *a]}}',
        '[' * 100_000,
        '{a: ' * 5_000,
        '- ' * 5_000 + 'a',
        'section: {args: {a: ' + '[' * 25 + ']' * 25 + '}}',
        repeated('[x, x]', '[{}]'),
        repeated('{x: 1}', '{{<<: [{}]}}'),
    ],
    ids=['loop', 'loop in a list', 'brackets', 'braces', 'dashes', 'deep', 'laughs', 'merges'],
)  # fmt: skip
def test_parse_refuses_values_without_an_end(tmp_path, content):
    message = refused_file(tmp_path, content)
    assert 'nested more than 20 deep' in message or f'more than {MOST_VALUES:,} values' in message


def test_parse_reads_only_regular_files_of_a_limited_size(tmp_path):
    large, pipe = tmp_path / 'large.yaml', tmp_path / 'pipe'
    large.write_text('#' * LARGEST + '\n')
    assert refused(Settings, f'--config={large}') == f'{large}: cannot be read as settings (over 1,048,576 bytes).'
    large.write_text('#' * (LARGEST - 1) + '\n')
    assert parse(Settings, [f'--config={large}']) == Settings()
    os.mkfifo(pipe)
    for path in ('/dev/zero', '/dev/null', pipe):
        answers = []
        reads = threading.Thread(
            target=lambda p=path, a=answers: a.append(refused(Settings, f'--config={p}')), daemon=True
        )
        reads.start()
        reads.join(20)
        assert answers == [f'{path}: cannot be read as settings (a device or a pipe); give a regular file.']
    assert refused(Settings, f'--config={tmp_path}') == f'{tmp_path}: cannot be read as settings (Is a directory).'
    for name in (f'{tmp_path}/gone', 'a' * 300):
        message = refused(Settings, f'--config={name}')
        assert message.startswith(f'--config is {name}: there is no such file or recipe; the recipes are ')
        assert ' coco2014_448, ' in message and ' compare/demo, ' in message
    assert 'a\\0b: there is no such file' in refused(Settings, '--config=a\0b')
    assert 'is given twice' in refused(Settings, '--config=a', '--config=b')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--count'], '--count has no value: give --count VALUE.'),
        (['--root', '--count=1'], '--root has no value: give --root VALUE.'),
        (['--count', '1', '2'], "'2' is not a setting: give --key value."),
        (['-c', 'x'], "'-c' is not a setting: give --key value."),
        (['--rate=1'], "unknown setting '--rate': did you mean --section.rate?"),
        (['--section.count=1'], "unknown setting '--section.count': did you mean --count?"),
        (['--section={rate: 1}'], "unknown setting '--section'"),
        (['--zzz=1'], "unknown setting '--zzz': choose from --count, "),
        (['--section.args.=1'], '--section.args.: a name between its dots is empty.'),
        (['--section.args.a=.nan'], 'section.args.a is NaN: must be no nan or infinity.'),
        (['--section.args.a=[1, {b: 1, b: 2}]'], 'b is given twice, in lines 1 and 1'),
        (['--section.names=[a'], '--section.names is [a: cannot be read as YAML (line 1: '),
        (['--count='], 'count is empty: must be a whole number.'),
        (['--most='], 'most is empty: must be a whole number or null.'),
    ],
)
def test_parse_reports_faults_of_the_command_line(arguments, message):
    assert message in refused(Settings, *arguments)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters='\x7f', codec='utf-8'), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(st.characters(exclude_characters='\x7f', codec='utf-8'), max_size=10), inner, max_size=4
    ),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_read_yaml_reads_json_and_written_yaml(value):
    assert read_yaml(json.dumps(value)) == value
    written = write_yaml(value)
    for found in (read_yaml(written), yaml.safe_load(written)):
        assert found == value and json.dumps(found) == json.dumps(value)  # 1, 1.0 and true are equal


def test_write_yaml_quotes_text_that_is_a_number():
    texts = ['1e5', '0E0', '12e34567', '.5', '1.', '010', 'no', '1:30', '2026-11-28', 'null', '', '+1', '-.inf', '1_0']
    assert read_yaml(write_yaml(texts)) == yaml.safe_load(write_yaml(texts)) == texts


def test_find_settings_accepts_paths_and_names_of_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_settings('compare/demo') == CONFIGS / 'compare' / 'demo.yaml'
    assert parse(TrainConfig, ['--config', 'demo']).model.name == 'msff_test_resnet'
    (tmp_path / 'demo').write_text('output: here')  # a file takes precedence
    assert parse(TrainConfig, ['--config', 'demo']).output == 'here'


def test_parse_names_the_new_key_of_a_renamed_setting(tmp_path):
    (tmp_path / 'old.yaml').write_text('output: runs\ndata_name: subset')
    with pytest.raises(InputError, match="unknown setting 'data_name': its name is now data.title."):
        parse(TrainConfig, [f'--config={tmp_path / "old.yaml"}'])
    with pytest.raises(InputError, match="unknown setting '--data_name': its name is now --data.title."):
        parse(TrainConfig, ['--output=x', '--data-name=subset'])


def test_settings_survive_write_settings(tmp_path):
    config = parse(TrainConfig, ['--config=demo', f'--output={tmp_path}', '--data.label_names=["1e5", "no"]'])
    write_settings(tmp_path, config)
    assert read_settings(tmp_path) == asdict(config)
    assert parse(TrainConfig, [f'--config={tmp_path / "settings.yaml"}']) == config
