"""The functions of the `msff-timm` command. Each imports what it needs when it is called."""

from . import startup  # noqa: F401  isort: skip

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from .parser import make_parser, parse

__all__ = ['main']

log = logging.getLogger('msff_timm.cli')

# Arguments of `msff_timm.data.load` that `data`, `data split` and `data issues` pass on
LOADING = (
    'root config_name keep_unlabelled difficult missing image_root image_column label_columns label_delimiter'
    ' label_names minus_one blank none_label repeated_images image_suffix validation_fold'
).split()
# Arguments of `data split` beside those
SPLITTING = 'validation test folds splits group seed output overwrite'.split()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        Exit code: 0, 1 if an image could not be read, or a code of `msff_timm.errors.exit_code`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    is_training = argv[:1] in (['train'], ['evaluate'])
    args = None if is_training else parse(argv)

    from msff_timm.errors import escape_output, exit_code

    escape_output()
    if is_training:
        return exit_code(lambda: _run_training(*argv), 'msff-timm')
    with _logging(args.quiet, args.verbose):
        return exit_code(lambda: COMMANDS[args.command](args), 'msff-timm')


class _Formatter(logging.Formatter):
    """Names the command before warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        return f'{"msff-timm: " if record.levelno >= logging.WARNING else ""}{super().format(record)}'


@contextmanager
def _logging(is_quiet: bool, is_verbose: bool) -> Iterator[None]:
    """Shows log messages on standard error: by default, information from this package and warnings of others."""
    theirs = logging.ERROR if is_quiet else logging.INFO if is_verbose else logging.WARNING
    ours = logging.ERROR if is_quiet else logging.DEBUG if is_verbose else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    loggers = {logging.getLogger(name): theirs for name in (None, 'timm', 'huggingface_hub')}
    loggers[logging.getLogger('msff_timm')] = ours
    handled = [logging.getLogger(name) for name in ('msff_timm', 'timm')]  # huggingface_hub has its own handler
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    for logger in handled:
        logger.addHandler(handler)
        logger.propagate = False  # a message is shown once, whatever handlers the root logger has
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
        for logger in handled:
            logger.removeHandler(handler)
            logger.propagate = True


def _run_training(name: str, *arguments: str) -> None:
    from msff_timm.errors import missing_package

    try:
        module = import_module(f'msff_timm.training.{name}')
    except ModuleNotFoundError as e:
        if e.name.partition('.')[0] in ('msff_timm', 'msff_timm_cli'):
            raise
        raise missing_package(e.name, 'train') from None
    sys.argv = [f'msff-timm {name}', *arguments]  # named in messages and in `--help`
    module.run_command(module.main)


def _choose_model(name: str | None) -> str:
    """Returns the model of `--model`; without one, the default, with a message about its labels."""
    if name is not None:
        return name

    import timm

    from msff_timm import hub
    from msff_timm.labels import COCO_LABELS, SCENES_LABELS, VOC_LABELS

    label_sets = {VOC_LABELS: ' of PASCAL VOC', COCO_LABELS: ' of COCO', SCENES_LABELS: ' of drawn scenes'}
    labels = timm.get_pretrained_cfg(hub.DEFAULT_MODEL).label_names
    source = label_sets.get(tuple(labels), '')
    log.info('model: %s (%d labels%s; --model for others)', hub.DEFAULT_MODEL, len(labels), source)
    return hub.DEFAULT_MODEL


def _load_model(args: argparse.Namespace):
    from msff_timm import hub
    from msff_timm.inference.logits import choose_device

    device = choose_device(args.device)
    model = hub.load(_choose_model(args.model)).to(device)
    log.debug('device: %s', device)
    return model


def _embed(args: argparse.Namespace) -> int:
    from . import bulk

    return bulk.embed(args, _load_model)


def _similar(args: argparse.Namespace) -> None:
    from . import bulk

    bulk.similar(args, _load_model)


def _predict(args: argparse.Namespace) -> int:
    from . import bulk

    if args.output is not None:
        return bulk.predict(args, _load_model)
    bulk.check_printed(args)
    from msff_timm.inference.predict import find_images, predict

    images = find_images(args.images, args.recursive)
    model = _load_model(args)
    width = max(len('image'), *map(len, images))
    if not args.json:
        print(f'{"image":{width}}  probability  label')
    predictions = []
    for prediction in predict(model, images, args.threshold, top_k=args.top_k):
        predictions.append(prediction)
        if prediction.error:
            log.error('%s', prediction.error)
        elif not args.json:
            rows = [f'{probability:11.3f}  {name}' for name, probability in prediction.labels.items()]
            threshold = 'its threshold' if args.threshold is None else f'{args.threshold:g}'
            for row in rows or [f'{"-":>11}  (none above {threshold})']:
                print(f'{prediction.image:{width}}  {row}', flush=True)
    if args.json:
        print(json.dumps([vars(prediction) for prediction in predictions], indent=2))
    failed = sum(prediction.error is not None for prediction in predictions)
    if failed:
        log.error('%d of %d images could not be read.', failed, len(images))
    return 1 if failed else 0


def _explain(args: argparse.Namespace) -> None:
    from msff_timm.files import check_file
    from msff_timm.inference.explain import explain

    check_file(args.output, '--output', parents=False)
    explanation = explain(_load_model(args), args.image, args.labels, args.output, args.layers, args.threshold)
    labels = ', '.join(f'{name} {probability:.3f}' for name, probability in explanation.labels.items())
    print(f'{args.output}: {labels}')


def _export(args: argparse.Namespace) -> None:
    from msff_timm import hub
    from msff_timm.files import check_file
    from msff_timm.inference.export import export
    from msff_timm.inference.predict import find_images

    check_file(args.output, '--output')
    model = hub.load(args.model)
    exported = export(
        model,
        args.output,
        args.format,
        args.image_size,
        find_images(args.images),
        args.precision,
        find_images(args.calibrate),
        args.check and (args.check[0], args.check[1:]),
        args.max_drop,
    )
    channels, height, width = exported.input_size
    size, shape = f'{exported.num_bytes / 1e6:.1f} MB', f'(B, {channels}, {height}, {width})'
    if checked := exported.checked:
        print(
            f'{exported.path}: {exported.format}, {args.precision}, {size} instead of'
            f' {exported.num_bytes_before / 1e6:.1f} MB, for images {shape}; mAP {checked.after:.2f} instead of'
            f' {checked.before:.2f} (all-points, {checked.num_labels} labels) on {checked.num_images:,} images of'
            f' {checked.data}.'
        )
    else:
        print(
            f'{exported.path}: {exported.format}, {size}, for images {shape}; its logits differ from the'
            f" model's by at most {exported.max_difference:.1g}."
        )


def _space(args: argparse.Namespace) -> None:
    from msff_timm.inference import app

    app.serve(_choose_model(args.model), args.host, args.port, args.device, args.mcp)


def _data(args: argparse.Namespace) -> int:
    from msff_timm.data import notes
    from msff_timm.data.inspect import draw, inspect, load_splits
    from msff_timm.files import check_folder

    output = args.output or f'inspect-{os.path.basename(os.path.abspath(args.name))}'
    check_folder(output, '--output')
    is_given = _names_format(args)
    if not is_given:
        print(_recognise(args))
    loading = {key: getattr(args, key) for key in (*LOADING, 'size', 'image_size')}
    splits, not_loaded = load_splits(args.name, args.splits, **loading)
    for message in not_loaded:
        log.warning('left out: %s', message)
    for line in dict.fromkeys(line for dataset in splits.values() for line in notes(dataset)):
        print(line)
    masking = None if args.minus_one == args.blank == 'absent' else args.name
    report = inspect(splits, args.check, args.workers, masking)
    print('\n'.join(report.lines()), flush=True)
    print('\n'.join(map(str, draw(report, splits, output))))
    if args.root:
        print(f'train: {_train_command(args, is_given)}')
    return 0 if report.is_complete else 1


def _names_format(args: argparse.Namespace) -> bool:
    """Returns whether the first argument names a format; without `--root` it may be a folder of the same name."""
    from msff_timm.data import NAMES

    return args.name in NAMES and args.name != 'auto' and (bool(args.root) or not os.path.isdir(args.name))


def _recognise(args: argparse.Namespace) -> str:
    """Replaces the folder of `data FOLDER` by the name of its format and `--root`; returns a line on what decided."""
    from msff_timm.data import NAMES
    from msff_timm.data.exports import recognise
    from msff_timm.errors import InputError, unknown

    root = args.root if args.name == 'auto' else args.name
    if args.name != 'auto' and (args.root or not (os.path.exists(root) or '/' in root)):
        if args.root:
            raise unknown('format', args.name, NAMES)
        raise InputError(f'{root}: there is no such folder or file, and no such format ({", ".join(sorted(NAMES))}).')
    found = recognise(root)
    args.name, args.root = found.name, found.root
    return found.note


def _train_command(args: argparse.Namespace, is_named: bool) -> str:
    """Returns the command that trains on the data with the same settings."""
    command = ['msff-timm', 'train']
    if is_named:
        command += ['--config', 'finetune', '--data.name', args.name]
    defaults = vars(make_parser().parse_args(['data', args.name]))
    for key in LOADING:
        value = getattr(args, key)
        if value != defaults[key]:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            command += [f'--data.{key}', text]
    return shlex.join(command)


def _data_split(args: argparse.Namespace) -> None:
    from msff_timm.data import notes
    from msff_timm.data.inspect import inspect
    from msff_timm.data.split_table import split

    if not _names_format(args):
        print(_recognise(args))
    division = split(args.name, **{key: getattr(args, key) for key in (*LOADING, *SPLITTING)})
    lines = [line for dataset in division.parts.values() for line in notes(dataset)]
    print('\n'.join(dict.fromkeys(lines + division.notes)))
    print('\n'.join(inspect(division.parts).lines()))
    command = ['msff-timm', 'train', '--data.root', os.path.relpath(division.path)]
    command += ['--data.image_root', division.image_root] if division.image_root else []
    print(f'{division.path}: train on it with {shlex.join(command)}')


def _data_issues(args: argparse.Namespace) -> None:
    from msff_timm.data import notes
    from msff_timm.errors import InputError, missing_package
    from msff_timm.files import check_folder
    from msff_timm.inference.logits import choose_device

    try:
        from msff_timm.training import issue_files, issues
        from msff_timm.training.checks import check_at_least
    except ModuleNotFoundError as e:
        raise missing_package(e.name, 'train') from None

    is_run = Path(args.name, 'settings.yaml').is_file()
    if is_run and (args.root or args.splits):
        raise InputError(f'{args.name} is the folder of a run, which names its data: leave out --root and --splits.')
    output = Path(args.output or (Path(args.name, 'issues') if is_run else f'issues-{Path(args.name).resolve().name}'))
    check_folder(output, '--output')
    for option, least in (('most', 1), ('workers', 0), ('image_size', 32)):
        check_at_least(f'--{option.replace("_", "-")}', getattr(args, option), least)
    device = choose_device(args.device)
    if not is_run and not _names_format(args):
        print(_recognise(args))
    if is_run:
        source = issues.open_run(args.name, args.model, args.image_size)
    else:
        loading = {key: getattr(args, key) for key in (*LOADING, 'size')}
        source, not_loaded = issues.open_data(args.name, args.splits, args.model, args.image_size, **loading)
        for message in not_loaded:
            log.warning('left out: %s', message)
    for line in dict.fromkeys(line for dataset in source.splits.values() for line in notes(dataset)):
        print(line)
    size = ' x '.join(map(str, source.data_config['input_size'][1:]))
    log.info('embeddings of %s at %s', source.model_name, size)
    found = issues.find_issues(source, output / 'embeddings.npz', device, args.workers, args.similarity, args.most)
    print('\n'.join(issue_files.describe(found, source)))
    print('\n'.join(map(str, issue_files.write(found, source, output))))


def _card(args: argparse.Namespace) -> None:
    from msff_timm.files import check_file
    from msff_timm.hub import card

    if args.output:
        check_file(args.output, '--output', parents=False)
    text = card.render_tag(args.tag) if args.tag else card.render(Path(args.folder), args.repo)
    if args.output:
        Path(args.output).write_text(text, encoding='utf-8')
        print(args.output)
        return
    print(text)
    encoding = sys.stdout.encoding or 'utf-8'
    missing = sum(character.encode(encoding, 'ignore') == b'' for character in set(text))
    if missing:
        log.warning('%s lacks %d of the characters, printed as escapes; -o FILE writes UTF-8.', encoding, missing)


def _push(args: argparse.Namespace) -> None:
    from msff_timm import hub

    pushed = hub.push(
        args.folder,
        args.repo_id,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        dry_run=args.dry_run,
        commit_message=args.message,
    )
    for name, size in pushed.files.items():
        print(f'{size:>13,}  {name}')
    total = f'{sum(pushed.files.values()):>13,}  bytes in {len(pushed.files)} files'
    if pushed.commit is None:
        print(f'{total} would be pushed to {pushed.repo_id}; nothing was sent.')
    else:
        print(f'{total} are at {pushed.pull_request or pushed.url}')
        print(f'Downloaded again, they compute the same logits: hf-hub:{pushed.repo_id}@{pushed.commit}')


def _halve(args: argparse.Namespace) -> None:
    from msff_timm.files import check_folder
    from msff_timm.hub.half import halve
    from msff_timm.inference.predict import find_images

    check_folder(args.output, '--output')
    halved = halve(args.folder, args.output, find_images(args.images), args.keep_below)
    images = f'{halved.num_images} image{"" if halved.num_images == 1 else "s"}{"" if args.images else " of noise"}'
    print(
        f'{halved.folder}: {halved.num_bytes / 1e6:.1f} MB instead of {halved.num_bytes_before / 1e6:.1f} MB; logits on'
        f' {images} differ by at most {halved.max_difference:.1g}.'
    )


def _convert(args: argparse.Namespace) -> None:
    from msff_timm.hub.convert import convert

    architecture = convert(args.source, args.output)
    print(
        f'{args.output}: {architecture} with ImageNet weights; start a backbone from it with'
        f' --model.backbone_pretrained false --model.backbone_from local-dir:{args.output}'
    )


COMMANDS = {
    'predict': _predict,
    'embed': _embed,
    'similar': _similar,
    'explain': _explain,
    'export': _export,
    'space': _space,
    'data': _data,
    'data split': _data_split,
    'data issues': _data_issues,
    'card': _card,
    'push': _push,
    'halve': _halve,
    'convert': _convert,
}
