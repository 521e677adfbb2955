"""timm's own tests of models, from the source distribution of the installed version, run on our models."""

import re
import subprocess
import sys
import tarfile

import pytest
import timm

import msff_timm  # noqa: F401  registers the models

OURS = ['msff', 'q2l', 'mldecoder']
RUN = """
import sys, pytest, msff_timm
sys.exit(pytest.main(['test_models.py', '-q', '-p', 'no:cacheprovider', '-W', 'ignore', '-k', sys.argv[1]]))
"""


@pytest.fixture(scope='module')
def suite(tmp_path_factory):
    """Folder of timm's tests."""
    folder = tmp_path_factory.mktemp('timm')
    wanted = f'timm=={timm.__version__}'
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-binary', 'timm', '--dest', folder, wanted]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f'pip cannot fetch the source distribution of {wanted}: {result.stderr.strip().splitlines()[-1]}')
    (archive,) = folder.glob('timm-*.tar.gz')
    with tarfile.open(archive) as content:
        content.extractall(folder, filter='data')
    (tests,) = folder.glob('timm-*/tests')
    return tests


@pytest.mark.slow
@pytest.mark.parametrize('family', OURS)
def test_timm_suite_passes(suite, family):
    # The two tests that download weights are left out: tests/hub/test_pretrained.py downloads from a test Hub.
    chosen = f'{family}_ and not _pretrained'
    result = subprocess.run([sys.executable, '-c', RUN, chosen], cwd=suite, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    (passed,) = re.findall(r'(\d+) passed', result.stdout)
    # Seven tests per model (forward, backward, TorchScript, features, three of FX) and one per tag (its configuration)
    models, tags = (timm.list_models(f'{family}_*', include_tags=with_tags) for with_tags in (False, True))
    assert int(passed) == 7 * len(models) + len(tags) and ' failed' not in result.stdout
