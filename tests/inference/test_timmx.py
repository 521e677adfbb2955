"""Export by timmx, an independent package, of models that this one registers."""

import numpy as np
import pytest
import timm
import torch

from msff_timm import hub
from msff_timm.inference.export import export

openvino = pytest.importorskip('openvino', reason='openvino is not installed')


def run(path, image):
    """Runs a file in float32: by default OpenVINO computes in bfloat16 where the processor has it."""
    compiled = openvino.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return compiled({'image' if str(path).endswith('onnx') else 0: image.numpy()})[0]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    def save(name):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp(name)
        hub.save(model, folder, ['cat', 'dog', 'owl'], timm.data.resolve_model_data_config(model, {'img_size': 96}))
        return f'local-dir:{folder}'

    return save


def test_openvino_reads_our_onnx_files_of_msff(saved, tmp_path):
    """One image at a time: for several, OpenVINO 2026.4 adds the biases of other labels."""
    model = hub.load(saved('msff_test_resnet'))
    export(model, tmp_path / 'm.onnx', 'onnx')
    image = torch.randn(1, 3, 96, 96)
    np.testing.assert_allclose(run(tmp_path / 'm.onnx', image), model(image).detach().numpy(), atol=1e-3)


@pytest.mark.parametrize('name', ['q2l_test_resnet', 'mldecoder_test_resnet', 'test_resnet'])
@pytest.mark.filterwarnings('ignore')
def test_timmx_writes_openvino_files(name, saved, tmp_path):
    timmx = pytest.importorskip('timmx', reason='timmx is not installed')
    folder = saved(name)
    path = timmx.export_model('openvino', folder, pretrained=True, input_size=(3, 96, 96), output=tmp_path / 'm.xml')
    model, image = hub.load(folder), torch.randn(1, 3, 96, 96)
    np.testing.assert_allclose(run(path, image), model(image).detach().numpy(), atol=1e-2)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['q2l_test_resnet', 'test_resnet'])
def test_timmx_writes_core_ml_packages(name, saved, tmp_path):
    """They run on macOS only; here their description is read."""
    timmx = pytest.importorskip('timmx', reason='timmx is not installed')
    coremltools = pytest.importorskip('coremltools', reason='coremltools is not installed')
    output = tmp_path / 'm.mlpackage'
    path = timmx.export_model('coreml', saved(name), pretrained=True, input_size=(3, 96, 96), output=output)
    (image,) = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description.input
    assert list(image.type.multiArrayType.shape) == [1, 3, 96, 96]
