"""Makes the pages of the site: the READMEs of the rooms, the notebook, and the API from docstrings."""

import re
from pathlib import Path, PurePosixPath

import mkdocs_gen_files
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
BLOB = 'https://github.com/msff-timm/msff-timm/blob/main'
PAGES = {
    'README.md': 'index.md',
    '.github/CONTRIBUTING.md': 'CONTRIBUTING.md',
    '.github/CHANGELOG.md': 'CHANGELOG.md',
    '.github/docs/comparison.md': 'comparison.md',
    '.github/docs/your_photos.ipynb': 'your_photos.md',
    **{
        f'{room}/README.md': f'{room}/README.md'
        for room in (
            'msff_timm/models',
            'msff_timm/data',
            'msff_timm/inference',
            'train',
            'train/benchmarks',
            'hub_cards',
        )
    },
}
# Public functions and classes by module
API = {
    'msff_timm.hub.load': ('load', 'create', 'load_for', 'load_backbone'),
    'msff_timm.hub.names': ('list_models', 'resolve'),
    'msff_timm.hub.save': ('save', 'set_thresholds'),
    'msff_timm.hub.push': ('push', 'Push'),
    'msff_timm.inference.predict': ('predict', 'Prediction', 'find_images'),
    'msff_timm.inference.explain': ('explain', 'Explanation', 'draw', 'smooth_overlay', 'overlay', 'caption'),
    'msff_timm.inference.attention': ('attention_maps', 'smooth_map'),
    'msff_timm.inference.export': ('export', 'Exported', 'read_metadata'),
    'msff_timm.metrics': ('evaluate', 'average_precision', 'precision_recall_f1'),
    'msff_timm.thresholds': ('fit', 'Thresholds'),
    'msff_timm.results': ('Results', 'pick_metrics'),
    'msff_timm.labels': (
        'get_label_names',
        'set_label_names',
        'check_label_names',
        'display_names',
        'get_thresholds',
        'match_labels',
        'describe_matches',
        'relabel',
    ),
    'msff_timm.data': ('load', 'label_names', 'notes'),
    'msff_timm.data.inspect': ('inspect', 'load_splits', 'Report', 'SplitReport', 'draw'),
    'msff_timm.models.msff': ('MSFF',),
    'msff_timm.models.query2label': ('Query2Label',),
    'msff_timm.models.ml_decoder': ('MLDecoder',),
    'msff_timm.training.parsing': ('parse',),
    'msff_timm.training.config': (
        'TrainConfig',
        'ModelConfig',
        'DataConfig',
        'OptimConfig',
        'DistillConfig',
        'CheckpointConfig',
    ),
    'msff_timm.training.data_config': ('EvalDataConfig',),
    'msff_timm.training.evaluate_config': ('EvaluateConfig',),
    'msff_timm.training.accumulator': ('MetricAccumulator',),
    'msff_timm.errors': ('InputError',),
}


def resolve(link: str, source: str) -> str:
    """Maps the link of a README to a page of the site, or to the file on GitHub."""
    path, _, anchor = link.partition('#')
    if path.startswith(f'{BLOB}/'):  # in the top README, which PyPI shows too
        target = path.removeprefix(f'{BLOB}/')
    elif not path or '://' in path:
        return link
    else:
        target = (ROOT / source).parent.joinpath(path).resolve().relative_to(ROOT).as_posix()
    anchor = anchor and f'#{anchor}'
    if target not in PAGES:
        return f'{BLOB}/{target}{anchor}'
    up = '../' * (len(PurePosixPath(PAGES[source]).parts) - 1)
    return f'{up}{PAGES[target]}{anchor}'


def convert(text: str, source: str) -> str:
    """Resolves the links of a README or a notebook."""
    return re.sub(r'\]\(([^)\s]+)\)', lambda match: f']({resolve(match[1], source)})', text)


for source, page in PAGES.items():
    if source.endswith('.ipynb'):
        notebook = nbformat.read(ROOT / source, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == 'markdown':
                cell.source = convert(cell.source, source)
        text, resources = MarkdownExporter().from_notebook_node(notebook)
        for name, content in resources['outputs'].items():
            with mkdocs_gen_files.open(name, 'wb') as file:
                file.write(content)
    else:
        text = convert((ROOT / source).read_text(encoding='utf-8'), source)
    with mkdocs_gen_files.open(page, 'w') as file:
        file.write(text)
with mkdocs_gen_files.open('api.md', 'w') as file:
    file.write(
        '# API\n\nThe functions that most users need are names of the package too: `msff_timm.load`, `predict`,'
        ' `explain`, `attention_maps`, `smooth_map`, `export`, `evaluate`, `fit_thresholds`, `save`, `push`,'
        ' `list_models`.\n\nTraining is a command, `msff-timm train` or `accelerate launch -m'
        ' msff_timm.training.train` ([Training](train/README.md)), with the settings of `msff_timm.training.config`.\n'
    )
    for module, names in API.items():
        file.write(f'\n::: {module}\n    options: {{members: [{", ".join(names)}]}}\n')
