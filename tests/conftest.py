import os

# before torch starts: many small models on few cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("COLUMNS", "120")

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("growth", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("growth")

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _quiet_transformers():
    """No progress bars and no advice on the terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def phi_folder(tmp_path_factory):
    """A random Phi, saved in float64."""
    from tests.models import random_phi, save

    return save(random_phi(), tmp_path_factory.mktemp("phi") / "source")


@pytest.fixture(scope="session")
def phi_mini():
    return ROOT / "examples" / "phi-mini"
