import json

import numpy as np
import pytest

from msff_timm import metrics
from msff_timm.errors import InputError
from msff_timm.results import RENAMED, Results, write_json


def make_results(seed: int = 0, **options) -> Results:
    rng = np.random.default_rng(seed)
    scores, targets = rng.random((20, 3)), rng.random((20, 3)) < 0.5
    data = {'name': 'table', 'root': 'photos', 'split': 'test'}
    found = metrics.evaluate(scores, targets, areas=np.where(targets, 0.05, np.nan), bootstrap=10)
    return Results.from_metrics(found, ['a', 'b', 'c'], **{'model': 'resnet18', 'data': data, **options})


def test_results_reads_what_it_writes(tmp_path):
    results = make_results(command='train.py --a 1', config={'seed': 0}, epoch=3)
    results.to_json(tmp_path / 'run' / 'results.json')
    assert Results.from_json(tmp_path / 'run' / 'results.json') == results
    assert list(results.metrics) == ['mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1']
    assert results.mAP_by_size['small'] is None and results.mAP_by_size['medium'] is not None
    assert results.num_positives_by_size['large'] == 0 and len(results.mAP_interval_95) == 2


def test_results_leaves_out_an_undefined_interval():
    scores, targets = np.array([[0.9], [0.1]]), np.array([[1], [0]])
    intervals = {
        Results.from_metrics(
            metrics.evaluate(scores, targets, bootstrap=1, seed=seed), ['a'], model='a', data={}
        ).mAP_interval_95
        and (100, 100)
        for seed in range(10)
    }
    assert intervals == {None, (100, 100)}  # resamples that draw one image twice, and both images


def test_results_to_json_writes_no_absolute_path(tmp_path):
    config = {
        'output': '/home/me/runs/secret',
        'model': {'init_from': 'local-dir:/home/me/teacher', 'args': {'weights': '/home/me/w.pt'}},
        'data': {'root': 'runs/../photos', 'image_root': '/home/me/photos', 'label_names': ['/m/01', '/m/02']},
    }
    results = make_results(
        model='local-dir:/home/me/run',
        config=config,
        init_from={'model': 'local-dir:/home/me/teacher', 'kept_labels': {'/m/01': '/m/01'}},
        command="/usr/bin/python train.py --data.root '/home/me/my photos' --model.init_from=local-dir:/home/me/t",
        unreadable=['/home/me/photos/a.jpg: is empty.'],
    )
    results.to_json(tmp_path / 'results.json')
    text = (tmp_path / 'results.json').read_text()
    assert '/home' not in text and '/usr' not in text
    read = Results.from_json(tmp_path / 'results.json')
    assert read.model == 'local-dir:run' and read.config['output'] == 'secret'
    assert read.config['data'] == {'root': 'runs/../photos', 'image_root': 'photos', 'label_names': ['/m/01', '/m/02']}
    assert read.config['model'] == {'init_from': 'local-dir:teacher', 'args': {'weights': 'w.pt'}}
    assert read.init_from == {'model': 'local-dir:teacher', 'kept_labels': {'/m/01': '/m/01'}}
    assert read.command == "python train.py --data.root 'my photos' --model.init_from=local-dir:t"
    assert read.unreadable == ['a.jpg: is empty.']


def test_results_from_json_reads_former_keys(tmp_path):
    results = make_results(model_weights={'mAP': 1.0})
    results.to_json(tmp_path / 'results.json')
    content = json.loads((tmp_path / 'results.json').read_text())
    former = {name: old for old, name in RENAMED.items()}
    write_json({former.get(key, key): value for key, value in content.items()}, tmp_path / 'former.json')
    assert '"measures"' in (tmp_path / 'former.json').read_text()
    assert Results.from_json(tmp_path / 'former.json') == results


def test_results_from_json_names_the_version_that_lacks_a_field(tmp_path):
    make_results().to_json(tmp_path / 'results.json')
    content = json.loads((tmp_path / 'results.json').read_text())
    del content['top'], content['num_labels_counted']
    write_json({**content, 'versions': {'msff_timm': '0.0.7'}, 'unknown': 1}, tmp_path / 'old.json')
    with pytest.raises(InputError, match=r'was written by msff-timm 0\.0\.7, and .* needs top, num_labels_counted;'):
        Results.from_json(tmp_path / 'old.json')
    write_json({**content, 'versions': None}, tmp_path / 'old.json')
    with pytest.raises(InputError, match='was written by an unknown version of msff-timm'):
        Results.from_json(tmp_path / 'old.json')


@pytest.mark.parametrize(
    ('content', 'message'),
    [('[]', 'holds no JSON object'), ('{', 'cannot be read as results'), ('[' * 100_000, 'cannot be read as results')],
)
def test_results_from_json_refuses_other_files(content, message, tmp_path):
    (tmp_path / 'results.json').write_text(content)
    with pytest.raises(InputError, match=message):
        Results.from_json(tmp_path / 'results.json')
    with pytest.raises(InputError, match='cannot be read as results'):
        Results.from_json(tmp_path)


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / 'results.json'
    write_json({'mAP': 1}, path)
    with pytest.raises(TypeError):
        write_json({'mAP': object()}, path)
    assert json.loads(path.read_text()) == {'mAP': 1} and list(tmp_path.iterdir()) == [path]
