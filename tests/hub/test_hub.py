import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

import msff_timm  # noqa: F401  registers the models
from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.labels import display_names, get_label_names, get_thresholds

pytestmark = pytest.mark.usefixtures('one_thread')
LABELS = ['cat', 'dog', 'chair']


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=3, in_chans=4, ffn_dim=64, decoder_depth=2).eval()
    for parameter in model.parameters():  # no zeros, which would hide what is lost
        torch.nn.init.normal_(parameter, std=0.1)
    for module in model.modules():  # running statistics that an untrained model does not have
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def folder(model, tmp_path):
    data_config = {'input_size': (4, 72, 72), 'mean': (0.1, 0.2, 0.3, 0.4), 'std': (1.0, 1.0, 1.0, 1.0)}
    data_config |= {'interpolation': 'bicubic', 'crop_pct': 1.0, 'crop_mode': 'squash'}
    hub.save(model, tmp_path / 'saved', LABELS, data_config)
    return tmp_path / 'saved'


def test_save_restores_logits_labels_and_preprocessing_in_another_process(model, folder):
    code = f"""
import json, timm, torch, msff_timm
torch.set_num_threads(1)
model = timm.create_model('local-dir:{folder}', pretrained=True).eval()
torch.manual_seed(1)
with torch.inference_mode():
    logits = model(torch.randn(3, 4, 72, 72))
print(logits.numpy().tobytes().hex())
print(json.dumps([model.pretrained_cfg['label_names'], timm.data.resolve_model_data_config(model)]))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    got_logits, got_config = result.stdout.splitlines()
    torch.manual_seed(1)
    with torch.inference_mode():
        logits = model(torch.randn(3, 4, 72, 72))
    assert got_logits == logits.numpy().tobytes().hex()
    label_names, data_config = json.loads(got_config)
    assert label_names == LABELS
    assert data_config['input_size'] == [4, 72, 72] and data_config['mean'] == [0.1, 0.2, 0.3, 0.4]
    assert (data_config['interpolation'], data_config['crop_pct'], data_config['crop_mode']) == ('bicubic', 1, 'squash')


def test_save_writes_safetensors_and_a_config_for_multi_label_readers(folder):
    assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == 'msff_test_resnet' and config['label_names'] == LABELS
    assert config['problem_type'] == 'multi_label_classification'
    assert config['model_args']['ffn_dim'] == 64 and config['model_args']['decoder_depth'] == 2
    # transformers passes both to one call.
    assert config['num_classes'] == 3 and 'num_classes' not in config['model_args']


def test_save_aligns_matrices(model, folder):
    content = (folder / 'model.safetensors').read_bytes()
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + length])
    assert header.pop('__metadata__') == {'format': 'pt'}
    begins = {name: (8 + length + tensor['data_offsets'][0]) for name, tensor in header.items()}
    weights = model.state_dict()
    assert begins.keys() == weights.keys()
    for name, begin in begins.items():
        size = weights[name].numel() * weights[name].element_size()
        assert begin % 64 == 0 or size % 64  # unaligned sizes come last
        assert begin % weights[name].element_size() == 0
    for name, tensor in load_file(folder / 'model.safetensors').items():
        assert torch.equal(tensor, weights[name])


def test_save_never_makes_load_fetch_the_backbone(monkeypatch, tmp_path):
    weights = timm.create_model('test_resnet').state_dict()
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', lambda *_, **__: dict(weights))
    model = timm.create_model('msff_test_resnet', num_classes=3, backbone_pretrained=True)
    hub.save(model, tmp_path, LABELS, timm.data.resolve_model_data_config(model))
    monkeypatch.undo()
    for pretrained in (True, False):  # the network would be refused: there is none
        timm.create_model(f'local-dir:{tmp_path}', pretrained=pretrained)


@pytest.mark.parametrize('label_names', [['cat', 'dog'], ['cat', 'dog', 'cat'], ['a', 'b', 'c', 'd']])
def test_save_refuses_label_names_that_do_not_fit_the_logits(model, tmp_path, label_names):
    with pytest.raises(ValueError, match='label names'):
        hub.save(model, tmp_path / 'out', label_names, {})
    assert not (tmp_path / 'out').exists()


def test_load_returns_a_model_in_evaluation_mode(folder):
    assert not hub.load(f'local-dir:{folder}').training


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda f: (f / 'model.safetensors').unlink(), 'holds no model.safetensors'),
        (lambda f: (f / 'config.json').unlink(), 'holds no config.json'),
        (lambda f: (f / 'config.json').write_text('{"architecture": '), 'cannot be loaded'),
        (lambda f: (f / 'config.json').write_text('{"architecture": "nothing"}'), 'Unknown model'),
        (lambda f: (f / 'model.safetensors').write_bytes(b'\xff' * 100), 'cannot be loaded'),
    ],
)
def test_load_names_a_damaged_folder_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        hub.load(f'local-dir:{folder}')
    assert str(folder) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('msff_resnet11', "unknown model 'msff_resnet11': did you mean msff_resnet101?"),
        ('msff_resnet18', 'No pretrained weights exist'),
        ('org/', 'It is no registered model, no existing folder, and no ORG/NAME on the Hub.'),
        ('http:org/name', "Unknown model source 'http'"),
        ('local-dir:nowhere', 'nowhere: holds no config.json'),
    ],
)
def test_load_refuses_unknown_names(name, message):
    with pytest.raises(InputError) as caught:
        hub.load(name)
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('call', 'offline', 'line'),
    [
        ("load('hf-hub:org/name')", '0', 'hf-hub:org/name: cannot be loaded from http://127.0.0.1:9 ('),
        (
            "create('msff_resnet18', backbone_pretrained=True)",
            '1',
            'msff_resnet18 (backbone_pretrained=True): weights cannot be fetched from http://127.0.0.1:9 (',
        ),
    ],
)
def test_load_and_create_name_an_unreachable_hub(call, offline, line, tmp_path):
    # Without the pauses between huggingface_hub's own retries, half a minute in all.
    code = 'import time; time.sleep = lambda seconds: None\n'
    code += f'from msff_timm import errors, hub\ntry: hub.{call}\nexcept errors.InputError as e: print(e)'
    environment = {'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HUB_OFFLINE': offline, 'HF_HOME': str(tmp_path)}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.startswith(line)
    assert result.stdout.count('\n') == 1


@pytest.mark.parametrize('name', ['msff_test_resnet', 'q2l_test_resnet', 'test_resnet'])
def test_load_backbone_copies_the_backbone_alone(name, model, folder):
    """Models of this package and of timm; all other weights stay."""
    new = timm.create_model(name, num_classes=5, in_chans=4)
    before = {key: tensor.clone() for key, tensor in new.state_dict().items()}
    hub.load_backbone(new, f'local-dir:{folder}')
    trained, prefix = model.backbone.state_dict(), 'backbone.' if hasattr(new, 'backbone') else ''
    for key, tensor in new.state_dict().items():
        of_backbone = key.removeprefix(prefix) in trained and key.startswith(prefix)
        assert torch.equal(tensor, trained[key.removeprefix(prefix)] if of_backbone else before[key]), key
    with pytest.raises(InputError, match='has another backbone than this model: it has no conv1.weight of 64 x 3'):
        hub.load_backbone(timm.create_model('msff_resnet18', device='meta'), f'local-dir:{folder}')


def test_load_backbone_copies_the_last_convolution(tmp_path):
    """From a plain EfficientNet, and from a model that has one, too; not from one without."""
    args = {'backbone': 'test_efficientnet', 'num_classes': 5}
    plain, pooled, bare = (
        timm.create_model(name, **own)
        for name, own in (
            ('test_efficientnet', {'num_classes': 5}),
            ('msff_test_resnet', {**args, 'pooled_classifier': True}),
            ('msff_test_resnet', args),
        )
    )
    for name, trained in (('plain', plain), ('pooled', pooled), ('bare', bare)):
        hub.save(trained, tmp_path / name, list('abcde'), timm.data.resolve_model_data_config(trained))
    for name, trained in (('plain', plain), ('pooled', pooled.backbone)):
        new = timm.create_model('msff_test_resnet', **args, pooled_classifier=True)
        hub.load_backbone(new, f'local-dir:{tmp_path / name}')
        assert torch.equal(new.backbone.conv_head.weight, trained.conv_head.weight)
    with pytest.raises(InputError, match='has another backbone than this model: it has no conv_head.weight of '):
        hub.load_backbone(new, f'local-dir:{tmp_path / "bare"}')


def test_set_thresholds_stores_them_for_load(model, folder):
    assert hub.load(f'local-dir:{folder}').thresholds is None
    hub.set_thresholds(f'local-dir:{folder}', {'per_class': [0.2, 0.4, 0.9], 'overall': 0.3})
    assert hub.load(f'local-dir:{folder}').thresholds == [0.2, 0.4, 0.9]
    assert hub.load(f'local-dir:{folder}').calibration is None
    calibrated = {'temperatures': [0.5, 1, 2], 'biases': [-1, 0, 0.25]}
    hub.set_thresholds(f'local-dir:{folder}', {'per_class': [0.2, 0.4, 0.9], **calibrated})
    assert hub.load(f'local-dir:{folder}').calibration == ([0.5, 1, 2], [-1, 0, 0.25])
    other = hub.load(f'local-dir:{folder}', num_classes=5)
    assert other.thresholds is None and other.calibration is None  # other labels
    timm.create_model(f'local-dir:{folder}', pretrained=True)


def test_load_for_keeps_the_classifier_for_equal_labels():
    """A tag's names are a tuple, a data set's a list."""
    name, labels = 'msff_test_resnet', list(timm.get_pretrained_cfg('msff_test_resnet').label_names)
    trained = hub.load(name).state_dict()
    model, kept = hub.load_for(name, labels)
    assert kept == {label: label for label in labels} and display_names(model) == labels
    assert all(torch.equal(tensor, trained[key]) for key, tensor in model.state_dict().items())
    assert get_thresholds(model) == hub.load(name).thresholds
    # In another order, the rows move, and the thresholds of the old order are dropped.
    model, kept = hub.load_for(name, labels[::-1])
    assert kept == {label: label for label in labels} and display_names(model) == labels[::-1]
    for key in ('label_embed.weight', 'classifier.weight', 'classifier.bias'):
        assert torch.equal(model.state_dict()[key], trained[key].flip(0))
    assert get_thresholds(model) is None


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'test_resnet'])
@pytest.mark.parametrize('wanted', [['cat', 'dog', 'cow'], ['dog', 'cow']])
def test_load_for_sets_the_names_of_other_labels(architecture, wanted, tmp_path):
    model = timm.create_model(architecture, num_classes=3)
    thresholds = {'per_class': [0.2, 0.4, 0.9]}
    hub.save(model, tmp_path, LABELS, timm.data.resolve_model_data_config(model), thresholds=thresholds)
    for keep_labels, carried in ((False, []), (True, [name for name in wanted if name in LABELS])):
        loaded, kept = hub.load_for(f'local-dir:{tmp_path}', wanted, keep_labels)
        assert display_names(loaded) == wanted and list(kept) == carried and get_thresholds(loaded) is None
        assert loaded(torch.zeros(2, 3, 64, 64)).shape == (2, len(wanted))


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'test_resnet'])
def test_load_takes_label_names_from_the_caller_and_drops_those_that_do_not_fit(architecture, tmp_path):
    model = timm.create_model(architecture, num_classes=3)
    thresholds = {'per_class': [0.2, 0.4, 0.9]}
    hub.save(model, tmp_path, LABELS, timm.data.resolve_model_data_config(model), thresholds=thresholds)
    name = f'local-dir:{tmp_path}'
    translated = hub.load(name, pretrained_cfg_overlay={'label_names': ['Katze', 'Hund', 'Stuhl'], 'crop_pct': 0.8})
    assert display_names(translated) == ['Katze', 'Hund', 'Stuhl'] and get_thresholds(translated) == [0.2, 0.4, 0.9]
    assert translated.pretrained_cfg['crop_pct'] == 0.8
    assert get_label_names(hub.load(name, num_classes=5)) is None
    with pytest.raises(InputError, match='2 label names for 3 logits'):
        hub.load(name, pretrained_cfg_overlay={'label_names': ['Katze', 'Hund']})


def same_as(model, folder, in_chans=3):
    loaded, x = hub.load(f'local-dir:{folder}'), torch.randn(2, in_chans, 64, 64)
    with torch.inference_mode():
        return torch.equal(loaded(x), model.eval()(x))


@pytest.mark.parametrize(
    'wrap',
    [
        torch.compile,
        torch.nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        ModelEmaV3,
        lambda model: torch.compile(torch.nn.DataParallel(model)),
        lambda model: torch.nn.DataParallel(torch.compile(model)),
    ],
    ids=['compiled', 'parallel', 'averaged', 'EMA', 'compiled parallel', 'parallel compiled'],
)
@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'test_resnet'])
def test_save_unwraps_models(wrap, architecture, tmp_path):
    model = timm.create_model(architecture, num_classes=3)
    hub.save(wrap(model), tmp_path, LABELS, timm.data.resolve_model_data_config(model))
    assert load_file(tmp_path / 'model.safetensors').keys() == model.state_dict().keys()
    assert same_as(model, tmp_path)


def test_save_drops_the_prefix_of_compiled_parts(tmp_path):
    model = timm.create_model('msff_test_resnet', num_classes=3)
    names = model.state_dict().keys()
    model.backbone = torch.compile(model.backbone)
    model.enhancement.branches[0][0] = torch.compile(model.enhancement.branches[0][0])
    hub.save(model, tmp_path, LABELS, timm.data.resolve_model_data_config(model))
    assert load_file(tmp_path / 'model.safetensors').keys() == names
    hub.load(f'local-dir:{tmp_path}')


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'test_resnet'])
@pytest.mark.parametrize('in_chans', [1, 2, 4, 6])
def test_save_adapts_the_preprocessing_to_the_channels(architecture, in_chans, tmp_path):
    model = timm.create_model(architecture, num_classes=3, in_chans=in_chans)
    data_config = timm.data.resolve_model_data_config(model, {'img_size': 96, 'crop_pct': 0.75})
    assert data_config['input_size'] == (3, 96, 96)
    hub.save(model, tmp_path, LABELS, {**data_config, 'mean': (0.1, 0.2, 0.6)})
    config = timm.data.resolve_model_data_config(hub.load(f'local-dir:{tmp_path}'))
    assert tuple(config['input_size']) == (in_chans, 96, 96) and config['crop_pct'] == 0.75
    assert list(config['mean']) == pytest.approx([0.3] * in_chans) and list(config['std']) == [0.5] * in_chans
    assert same_as(model, tmp_path, in_chans)


@pytest.mark.parametrize(
    ('thresholds', 'part'),
    [
        ({'per_class': [0.5, 0.5]}, 'per_class, a list of 3 numbers'),
        ({'overall': 0.5}, 'per_class, a list of 3 numbers'),
        ({'per_class': 0.5}, 'per_class, a list of 3 numbers'),
        ({'per_class': [0.5, 0.5, float('nan')]}, 'from 0 to below 1'),
        ({'per_class': [0.5, 0.5, 1]}, 'from 0 to below 1'),
        ({'per_class': [0.5, 0.5, '0.5']}, 'from 0 to below 1'),
        ({'per_class': [0.5] * 3, 'temperatures': [1, 1, 1]}, 'biases, a list of 3 numbers'),
        ({'per_class': [0.5] * 3, 'temperatures': [1, 1], 'biases': [0, 0, 0]}, 'temperatures, a list of 3 numbers'),
        ({'per_class': [0.5] * 3, 'temperatures': [1, 0, 1], 'biases': [0, 0, 0]}, 'finite numbers above 0'),
        ({'per_class': [0.5] * 3, 'temperatures': [1, 1, 1], 'biases': [0, 0, float('nan')]}, 'finite numbers'),
    ],
)
def test_thresholds_must_be_one_probability_for_each_logit(thresholds, part, model, folder, tmp_path):
    with pytest.raises(InputError, match=part):
        hub.save(model, tmp_path / 'new', LABELS, timm.data.resolve_model_data_config(model), thresholds=thresholds)
    with pytest.raises(InputError, match=part):
        hub.set_thresholds(f'local-dir:{folder}', thresholds)
    assert not (tmp_path / 'new').exists() and hub.load(f'local-dir:{folder}').thresholds is None
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'thresholds': thresholds}))
    with pytest.raises(InputError, match=f'{folder}: cannot be loaded .*{part}'):
        hub.load(f'local-dir:{folder}')


def test_set_thresholds_refuses_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match='holds no config.json'):
        hub.set_thresholds(f'local-dir:{tmp_path}', {'per_class': [0.5]})
