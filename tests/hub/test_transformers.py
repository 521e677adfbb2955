"""Models from `hub.save` in transformers, which has a wrapper for timm."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hub_server import HubServer
from PIL import Image

from msff_timm import hub
from msff_timm.hub import card

# Older ones do not hand the model_args of config.json to timm.
transformers = pytest.importorskip('transformers', '4.53', reason='needs the extra `transformers`')

pytestmark = pytest.mark.usefixtures('one_thread')
LABELS = ['cat', 'a "quoted" | <b>ünï</b>, 猫\n', '0', '', ' dog', '../x', 'LABEL_2']
DATA = {'input_size': (3, 72, 96), 'interpolation': 'bicubic', 'crop_pct': 1.0, 'crop_mode': 'squash'}
DATA |= {'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)}
# Each of them changes shapes or logits.
ARGUMENTS = dict(ffn_dim=64, encoder_depth=1, decoder_depth=2, decoder_self_attn=True, interpolation='nearest')
THRESHOLDS = {'per_class': [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 'overall': 0.4}


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=len(LABELS), **ARGUMENTS).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope='module')
def root(model, tmp_path_factory):
    """Returns the root of a Hub with our model, and with unneeded files beside it."""
    root = tmp_path_factory.mktemp('hub')
    folder = root / 'models' / 'org' / 'name'
    hub.save(model, folder, LABELS, DATA, training={'image_size': 72}, thresholds=THRESHOLDS)
    (folder / 'pytorch_model.bin').write_bytes(b'a pickle that is never read')
    (folder / 'curves.png').write_bytes(b'never shown')
    return root


@pytest.fixture(scope='module')
def folder(root):
    return root / 'models' / 'org' / 'name'


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp('photo') / 'photo.jpg'
    Image.fromarray(pixels).resize((130, 110), Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def logits_of(model: torch.nn.Module, photo: Path) -> torch.Tensor:
    """Returns the logits (1, K) of the unsaved model, with the saved preprocessing."""
    transform = timm.data.create_transform(**DATA)
    with torch.inference_mode():
        return model(transform(Image.open(photo).convert('RGB'))[None])


PULL = """
import json, sys
import msff_timm, timm, torch
from PIL import Image
from msff_timm import hub
from msff_timm.inference.predict import predict
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

torch.set_num_threads(1)
classify = pipeline('image-classification', model='org/name')  # applies the sigmoid itself
found = classify(sys.argv[1], top_k=99)
for snippet in json.loads(sys.argv[2]):
    exec(snippet, {})
processor = AutoImageProcessor.from_pretrained('org/name')
model = AutoModelForImageClassification.from_pretrained('org/name')
by_timm = timm.create_model('hf-hub:org/name', pretrained=True).eval()
with torch.inference_mode():
    pixels = processor(Image.open(sys.argv[1]).convert('RGB'))['pixel_values']
    logits = {'transformers': model(pixels).logits, 'timm': by_timm(pixels), 'pipeline': classify.model(pixels).logits}
print(json.dumps({
    'found': found,
    'predicted': list(predict(hub.load('hf-hub:org/name'), sys.argv[1:2], threshold=0))[0].labels,
    'logits': {name: values.numpy().tobytes().hex() for name, values in logits.items()},
    'labels': [model.config.id2label[k] for k in range(model.config.num_labels)],
    'ids': model.config.label2id,
    'problem_type': model.config.problem_type,
    'type': type(model).__name__,
}))
"""


def test_pipeline_from_the_hub_has_the_logits_and_labels_of_timm(model, root, photo, tmp_path):
    with HubServer(root) as server:
        environment = {**os.environ, **server.environment(tmp_path / 'home')}
        snippets = re.findall('```python\n(.*?)```', card.render(root / 'models' / 'org' / 'name', 'org/name'), re.S)
        command = [sys.executable, '-c', PULL, photo.name, json.dumps(snippets)]
        settings = dict(capture_output=True, text=True, env=environment, cwd=photo.parent, timeout=300)
        result = subprocess.run(command, **settings)
        assert result.returncode == 0, result.stderr
        pulled = json.loads(result.stdout.splitlines()[-1])
    logits = logits_of(model, photo)
    assert set(pulled['logits'].values()) == {logits.numpy().tobytes().hex()}
    assert pulled['labels'] == LABELS and pulled['ids'] == {name: k for k, name in enumerate(LABELS)}
    assert pulled['problem_type'] == 'multi_label_classification'
    assert pulled['type'] == 'TimmWrapperForImageClassification'
    # Each label has its own probability; they do not sum to one.
    expected = sorted(zip(logits.sigmoid()[0].tolist(), LABELS, strict=True), reverse=True)
    assert [row['label'] for row in pulled['found']] == [name for _, name in expected]
    assert [row['score'] for row in pulled['found']] == pytest.approx([p for p, _ in expected], rel=1e-5)
    # The code in the card, for timm and for transformers
    assert len(snippets) == 2 and f'{pulled["found"][:5]}\n' in result.stdout
    by_logit = zip(LABELS, logits.sigmoid()[0].tolist(), strict=True)
    assert ''.join(f'{name:20} {p:.3f}\n' for name, p in by_logit) in result.stdout
    assert pulled['predicted'] == {name: pytest.approx(p, rel=1e-5) for p, name in expected}
    assert abs(sum(row['score'] for row in pulled['found']) - 1) > 0.1
    asked = {path for method, path in server.requests if '/resolve/' in path}
    assert all(path.startswith('/org/name/resolve/') for path in asked), asked  # nothing of the backbone
    downloaded = {file.name for file in (tmp_path / 'home').rglob('snapshots/*/*')}
    assert downloaded == {'config.json', 'model.safetensors'}


@pytest.mark.parametrize('mode', ['squash', 'center', 'border'])
@pytest.mark.parametrize('kind', ['RGB', 'L', 'rotated'])
def test_pixel_values_equal_our_preprocessing(model, photo, tmp_path, mode, kind):
    data_config = {**DATA, 'crop_mode': mode, 'crop_pct': 1.0 if mode == 'squash' else 0.875}
    data_config |= {'interpolation': 'bilinear', 'input_size': (3, 64, 64)} if mode == 'center' else {}
    hub.save(model, tmp_path, LABELS, data_config)
    image, path = Image.open(photo), tmp_path / 'photo.png'
    exif = image.getexif()
    if kind == 'rotated':
        exif[0x0112] = 6
    image.convert('L' if kind == 'L' else 'RGB').save(path, exif=exif)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    got = processor(transformers.image_utils.load_image(str(path)))['pixel_values']  # like the pipeline
    turned = image.transpose(Image.Transpose.ROTATE_270) if kind == 'rotated' else image
    pixels = turned.convert('L' if kind == 'L' else 'RGB').convert('RGB')
    assert torch.equal(got[0], timm.data.create_transform(**data_config)(pixels))
    if mode == 'squash':  # by hand, as far as torch's resizing of floats agrees with PIL's of bytes
        floats = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 255
        resized = F.interpolate(floats, (72, 96), mode='bicubic', antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(DATA[key])[:, None, None] for key in ('mean', 'std'))
        assert (got - (resized - mean) / std).abs().max() < 1.5 / 255 / 0.2


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        ('msff_test_resnet', {'decoder_depth': 0}),
        ('msff_test_resnet', {'share_branches': False, 'fusion_mode': 1, 'decoder_self_attn': [True, False, True]}),
        ('msff_test_resnet', {'backbone': 'swin_tiny_patch4_window7_224', 'backbone_args': {'embed_dim': 24}}),
        ('msff_efficientnet_b0', {}),
        ('q2l_test_resnet', {}),
        ('mldecoder_test_resnet', {}),
    ],
)
def test_logits_equal_those_of_timm_bit_by_bit(name, arguments, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    hub.save(model, tmp_path, list('abcde'), timm.data.resolve_model_data_config(model))
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 128, 96)
    with torch.inference_mode():
        assert torch.equal(wrapped(images).logits, model(images))


def test_save_pretrained_of_transformers_loads_in_transformers_and_timm(model, folder, photo, tmp_path):
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(folder)
    wrapped.save_pretrained(tmp_path)
    assert (tmp_path / 'model.safetensors').is_file()
    expected = logits_of(model, photo)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert [again.config.id2label[k] for k in range(7)] == LABELS
    assert again.config.problem_type == 'multi_label_classification'
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with torch.inference_mode():
        logits = again(processor(Image.open(photo))['pixel_values']).logits
    # transformers does not align the matrices in its file.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    loaded = hub.load(f'local-dir:{tmp_path}')
    assert loaded.pretrained_cfg['label_names'] == LABELS and loaded.thresholds == THRESHOLDS['per_class']
    with torch.inference_mode():
        assert torch.equal(loaded(timm.data.create_transform(**DATA)(Image.open(photo))[None]), expected)


def test_trainer_takes_the_same_step_as_timm(folder, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 64, 64, generator=generator)
    labels = (torch.rand(6, len(LABELS), generator=generator) < 0.4).float()
    rows = [{'pixel_values': x, 'labels': y} for x, y in zip(images, labels, strict=True)]
    config = transformers.AutoConfig.from_pretrained(folder)
    config.model_args['drop_rate'] = 0.0
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(folder, config=config)
    ours = timm.create_model(f'local-dir:{folder}', pretrained=True, drop_rate=0.0)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=6,
        per_device_eval_batch_size=6,
        learning_rate=0.1,
        lr_scheduler_type='constant',
        optim='sgd',
        max_grad_norm=0,
        logging_steps=1,
        save_strategy='no',
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(wrapped, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()

    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours.train()
    logits = ours(images)
    # Binary cross-entropy by hand: the mean of -log p of the targets over images and labels.
    p = logits.sigmoid()
    loss = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert trainer.state.log_history[0]['loss'] == pytest.approx(loss.item(), rel=1e-3)  # some versions log four digits
    before = ours.classifier.weight.detach().clone()
    loss.backward()
    optimizer.step()
    trained = wrapped.timm_model.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(trained['classifier.weight'], before)

    with torch.inference_mode():
        p = ours.eval()(images).sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert trainer.evaluate()['eval_loss'] == pytest.approx(expected.item(), rel=1e-3)


def test_trainer_trains_on_labels_that_load_for_set(folder, tmp_path):
    model, kept = hub.load_for(f'local-dir:{folder}', ['dog', 'cat', 'bird'], keep_labels=True)
    hub.save(model, tmp_path, ['dog', 'cat', 'bird'], DATA)
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert wrapped.config.id2label == {0: 'dog', 1: 'cat', 2: 'bird'} and 'cat' in kept
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(wrapped(images).logits, model.eval()(images))
