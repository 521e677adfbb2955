"""The notebook of the documentation runs from its first cell to its last."""

import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / '.github' / 'docs' / 'your_photos.ipynb'
SIZES = 'num_train, num_validation, epochs, image_size = 32, 16, 1, 64'


@pytest.fixture(scope='module')
def executed(voc_root, tmp_path_factory):
    """The notebook after a run on a few small photos."""
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    folder = tmp_path_factory.mktemp('notebook')
    (folder / 'VOCdevkit').symlink_to(voc_root)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [i for i, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', ())]
    notebook.cells.insert(settings + 1, nbformat.v4.new_code_cell(SIZES))
    environment = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',  # for msff-timm
        'OMP_NUM_THREADS': '1',
        'HF_HUB_OFFLINE': '1',
    }
    nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(folder)}}).execute(
        env=environment
    )
    return folder, notebook


def text_of(cell) -> str:
    return ''.join(output.get('text', '') for output in cell.get('outputs', ()))


def test_notebook_runs_and_trains_the_labels_of_its_table(executed):
    folder, notebook = executed
    (trained,) = [cell for cell in notebook.cells if cell.source.startswith('!msff-timm train')]
    assert 'Training msff_efficientnet_lite0 on 32 images' in text_of(trained)
    assert 'runs/photos: mAP' in text_of(trained) and '(16 images' in text_of(trained)
    (pushed,) = [cell for cell in notebook.cells if cell.source.startswith('!msff-timm push')]
    assert 'would be pushed to ORG/photos; nothing was sent.' in text_of(pushed)
    assert (folder / 'runs' / 'photos' / 'model.safetensors').is_file()


def test_notebook_draws_predictions_and_attention(executed):
    _, notebook = executed
    images = [
        output
        for cell in notebook.cells
        for output in cell.get('outputs', ())
        if 'image/jpeg' in output.get('data', ())
    ]
    assert len(images) == 4


def test_notebook_holds_the_outputs_of_one_run_from_top_to_bottom():
    nbformat = pytest.importorskip('nbformat')
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == 'error']
    assert '/work/' not in NOTEBOOK.read_text(encoding='utf-8') and '/tmp/' not in NOTEBOOK.read_text(encoding='utf-8')
