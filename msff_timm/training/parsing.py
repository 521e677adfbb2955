"""Parsing of settings from YAML files and command lines, checked against the types of their dataclasses."""

import math
import os
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from ..errors import InputError, unknown
from ..files import read_small
from .yaml12 import format_value, read_scalar, read_yaml, write_yaml

__all__ = ['CONFIGS', 'find_settings', 'flatten', 'parse']


class Config(Protocol):
    """A dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def validate(self) -> None: ...


ConfigT = TypeVar('ConfigT', bound=Config)
INSTALLED = Path(__file__).parent / 'configs'
CONFIGS = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / 'train' / 'configs'  # the recipes
LARGEST = 2**20  # bytes of a settings file
PRINT = '--print_config'
SWITCHES = {'yes': True, 'on': True, 'no': False, 'off': False, 'true': True, 'false': False}
RENAMED = {'data_name': 'data.title'}  # keys of earlier versions, and their present names
NOT_TEXT = (bool, int, float)  # what YAML makes of words without quotes
KINDS = {
    str: 'text',
    int: 'a whole number',
    float: 'a finite number',
    bool: 'true or false',
    list[str]: 'a list of text ([a, b])',
    list[int]: 'a list of whole numbers ([0, 1])',
    list[float]: 'a list of finite numbers ([0.5, 1])',
    dict[str, Any]: 'a mapping ({a: 1}) without nan or infinity',
    Any: 'no nan or infinity',
}


def parse(config_class: type[ConfigT], argv: list[str], default_file: Path | None = None) -> ConfigT:
    """Parses settings: `--config NAME` (or the default file), overridden by `--key value` or `--the-key value`.

    `--help` prints all settings, and `--print_config` the resulting ones as YAML; both end the process.

    Args:
        config_class: Dataclass of the settings, with a method `validate`; its sections are dataclasses too.
        argv: Arguments of the command line. The last value of a repeated setting counts.
        default_file: File to read without `--config`.

    Raises:
        InputError: A key is unknown, a value has the wrong type or is out of range, or a file cannot be read.

    Examples:
        >>> from msff_timm.training.config import TrainConfig
        >>> config = parse(TrainConfig, ['--config', 'finetune', '--data.root', 'photos', '--optim.epochs', '5'])
        >>> config.model.name, config.optim.epochs
        ('msff_efficientnet_lite0', 5)
    """
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = ascii(argument)[1:-1]
            raise InputError(
                f'{shown}: is not UTF-8, which results need to record it; rename the file or folder.'
            ) from None
    if not {'-h', '--help'}.isdisjoint(argv):
        parser = ArgumentParser(prog=Path(sys.argv[0]).name)
        default = default_file and default_file.relative_to(CONFIGS).with_suffix('').as_posix()
        parser.add_argument('--config', default=default, help='Name of a recipe, or YAML file of settings.')
        parser.add_argument(PRINT, action='store_true', help='Print all settings as YAML and exit.')
        parser.add_class_arguments(config_class)
        parser.parse_args(['--help'])
    kinds = dict(_kinds(config_class))
    given = list(_pairs([argument for argument in argv if argument != PRINT]))
    files = [value for key, value in given if key == 'config']
    if len(files) > 1:
        raise InputError(
            f'--config is given twice ({files[0]}, {files[1]}): give one file, and other settings as --key value.'
        )
    path = find_settings(files[0]) if files else default_file
    values = {} if path is None else _read_file(path, kinds)
    values |= dict(_read_overrides([(key, value) for key, value in given if key != 'config'], kinds, values))
    config: ConfigT = _make(config_class, values)
    config.validate()
    if PRINT in argv:
        print(write_yaml(asdict(config)), end='')
        sys.exit()
    return config


def _kinds(config_class: type, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Returns the keys of all settings, e.g. `data.root`, with their types."""
    for f in fields(config_class):
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield from _kinds(f.type, f'{prefix}{f.name}.')
        else:
            yield f'{prefix}{f.name}', f.type


def _make(config_class: type, values: dict[str, Any], prefix: str = '') -> Any:
    arguments = {}
    for f in fields(config_class):
        key = f'{prefix}{f.name}'
        if isinstance(f.type, type) and is_dataclass(f.type):
            arguments[f.name] = _make(f.type, values, f'{key}.')
        elif key in values:
            arguments[f.name] = values[key]
        elif f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f'{key} is missing: give --{key}, or set it in the settings file.')
    return config_class(**arguments)


# Files


def find_settings(name: str, key: str = '--config') -> Path:
    """Finds a settings file.

    Args:
        name: Path of a file, or name of a recipe, e.g. `coco2014_448` or `compare/demo`.
        key: Name of the setting, for the message.

    Raises:
        InputError: There is no such file or recipe.
    """
    recipe = CONFIGS / f'{name}.yaml'
    if not os.path.isfile(name) and os.path.isfile(recipe):
        return recipe
    if not os.path.lexists(name):
        recipes = sorted(path.relative_to(CONFIGS).with_suffix('').as_posix() for path in CONFIGS.rglob('*.yaml'))
        shown = name.replace('\0', '\\0')
        raise InputError(f'{key} is {shown}: there is no such file or recipe; the recipes are {", ".join(recipes)}.')
    return Path(name)


def _read_file(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """Reads the settings of a YAML file, e.g. `{'optim.lr': 1e-4}`."""
    text = read_small(path, LARGEST, 'settings')
    try:
        content = read_yaml(text)
    except ValueError as e:
        raise InputError(f'{path}: cannot be read as settings ({e}).') from None
    try:
        if not isinstance(content, dict | None):
            raise InputError(f'settings must be "key: value" lines, not {format_value(content)}.')
        values = {}
        for key, value in _leaves(content or {}, kinds):
            if key in values:
                raise InputError(f'{key} is given twice, once in its section and once with a dot.')
            values[key] = _checked(key, value, kinds[key])
    except InputError as e:
        raise InputError(f'{path}: {e}') from None
    return values


def _leaves(content: dict[str, Any], kinds: dict[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f'{prefix}{name}'
        if key in kinds:
            yield key, value
        elif isinstance(value, dict) and value:
            yield from _leaves(value, kinds, f'{key}.')
        elif not any(known.startswith(f'{key}.') for known in kinds):
            raise _unknown('setting', key, kinds)
        elif value != {}:
            raise InputError(
                f'{key} is {format_value(value)}: must hold settings, as in "{key}: {{...}}", or be left out.'
            )


def _unknown(what: str, key: str, kinds: Iterable[str], dashes: str = '') -> InputError:
    """Creates the error for an unknown key, with its new name, the settings that end alike, or else the nearest."""
    if key in RENAMED:
        return InputError(f'unknown {what} {dashes + key!r}: its name is now {dashes}{RENAMED[key]}.')
    ends: dict[str, list[str]] = {}
    for known in kinds:
        ends.setdefault(known.rpartition('.')[2], []).append(known)
    end = key.rpartition('.')[2]
    found = ends.get(end) or get_close_matches(key, kinds, n=1)
    found = found or [known for near in get_close_matches(end, ends, n=1) for known in ends[near]]
    if not found:
        return unknown(what, f'{dashes}{key}', [f'{dashes}{known}' for known in kinds])
    return InputError(f'unknown {what} {dashes + key!r}: did you mean {" or ".join(dashes + name for name in found)}?')


# Command lines


def _pairs(argv: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Splits a command line into keys, as in YAML, and values."""
    rest = iter(argv)
    for argument in rest:
        if not argument.startswith('--'):
            raise InputError(f'{argument!r} is not a setting: give --key value.')
        key, equals, value = argument[2:].partition('=')
        if not equals:
            value = next(rest, '--')
            if value.startswith('--'):
                raise InputError(f'--{key} has no value: give --{key} VALUE.')
        yield key.replace('-', '_'), value


def _read_overrides(
    given: list[tuple[str, str]], kinds: dict[str, Any], of_file: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Reads the settings of a command line.

    Single entries of a mapping, e.g. `--model.args.fusion_mode 1`, are merged into the file's mapping.
    """
    mappings = [key for key, kind in kinds.items() if get_origin(kind) is dict]
    merged: dict[str, dict] = {}
    for key, value in given:
        if key in kinds:
            yield key, _checked(key, _of_command_line(key, value, kinds[key]), kinds[key])
            continue
        name = next((name for name in mappings if key.startswith(f'{name}.')), None)
        if name is None:
            raise _unknown('setting', key, kinds, '--')
        if any(other == name for other, _ in given):
            raise InputError(f'--{key} and --{name}: give one of them: the second replaces the whole mapping.')
        into = merged.setdefault(name, _copied(of_file.get(name, {})))
        *path, last = key.removeprefix(f'{name}.').split('.')
        if not all((*path, last)):
            raise InputError(f'--{key}: a name between its dots is empty.')
        for part in path:
            if not isinstance(into.setdefault(part, {}), dict):
                into[part] = {}
            into = into[part]
        into[last] = _checked(key, _of_command_line(key, value, Any), Any)
    yield from merged.items()


def _copied(mapping: dict) -> dict:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in mapping.items()}


def _of_command_line(key: str, value: str, kind: Any) -> Any:
    """Reads a value; text is not interpreted, except null."""
    if str in _members(kind) or value == '':
        return None if value == 'null' else value
    try:
        return read_yaml(value)
    except ValueError as e:
        raise InputError(f'--{key} is {value}: cannot be read as YAML ({e}).') from None


# Types


def _members(kind: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _checked(key: str, value: Any, kind: Any) -> Any:
    """Converts a value to the type of its setting.

    Raises:
        InputError: The value has another type, is empty, or is not finite.
    """
    for member in _members(kind):
        found, fits = _converted(value, member)
        if fits:
            return found
    must = ' or '.join(KINDS.get(member, 'null') for member in _members(kind))
    if value == '':
        raise InputError(f'{key} is empty: must be {must}.')
    words = [item for item in (value if isinstance(value, list) else [value]) if item is None or type(item) in NOT_TEXT]
    quotes = ' Put text in quotes.' if words and 'text' in must else ''
    if quotes and isinstance(value, list):
        quotes = f' Put text in quotes: "{format_value(words[0])}".'
    raise InputError(f'{key} is {format_value(value)}: must be {must}.{quotes}')


def _converted(value: Any, kind: Any) -> tuple[Any, bool]:
    """Returns a value converted to a type, and True if it is of that type."""
    if kind is types.NoneType:
        return value, value is None
    if kind is Any:
        return value, _is_finite(value)
    if kind is str:
        return value, isinstance(value, str) and value != '' and '\0' not in value
    if get_origin(kind) is list:
        (of,) = get_args(kind)
        items = [_converted(item, of) for item in value] if isinstance(value, list) else []
        return [item for item, _ in items], isinstance(value, list) and all(fits for _, fits in items)
    if get_origin(kind) is dict:
        return value, isinstance(value, dict) and _is_finite(value)
    if isinstance(value, str):  # templates write numbers in quotes
        value = SWITCHES.get(value.lower()) if kind is bool else read_scalar(value, 'the value')
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    return value, type(value) is kind and _is_finite(value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def flatten(content: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Returns the values of nested dictionaries with their keys, e.g. `('data.root', '/data')`."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value
