import datasets
import pytest


@pytest.fixture(autouse=True, scope='module')
def cache(tmp_path_factory):
    """Keeps the Arrow files of a test in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))
        yield
