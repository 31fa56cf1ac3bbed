import os

# before torch starts: many small models on few cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("COLUMNS", "120")
# what a developer's shell sets must not change what commands print and which warnings they give
os.environ.pop("TRANSFORMERS_VERBOSITY", None)
os.environ.pop("PYTHONWARNINGS", None)

import pytest
from hypothesis import settings

from tests.support.paths import PHI_MINI
from tests.support.selection import run_slow_tests, slow_tests_run

settings.register_profile("growth", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("growth")


@pytest.fixture(autouse=True)
def _quiet_transformers():
    """No progress bars and no advice on the terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def phi_folder(tmp_path_factory):
    """A random Phi, saved in float64."""
    from tests.support.models import random_phi, save

    return save(random_phi(), tmp_path_factory.mktemp("phi") / "source")


@pytest.fixture(scope="session")
def phi_mini():
    return PHI_MINI


# ------------------------------------------------- docs/families.md is written from what the tests saw

SEEN = pytest.StashKey[set]()


def pytest_addoption(parser):
    parser.addoption("--write-families", action="store_true", help="write docs/families.md from this run")
    parser.addoption("--family", action="append", help="run the tests of this family, or these, and their cases alone")


def pytest_configure(config):
    if config.option.write_families and (config.option.keyword or config.option.markexpr):
        raise pytest.UsageError('--write-families needs every test of a family: use -m "", --family NAME and no -k')
    config.stash[SEEN] = set()
    run_slow_tests(config.option.markexpr != "not slow")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(obj):
    """No case of a test that is slow as a whole is collected for the quick run, which has no use for it."""
    marks = getattr(obj, "pytestmark", [])
    return [] if not slow_tests_run() and any(mark.name == "slow" for mark in marks) else None


def pytest_collection_modifyitems(config, items):
    if config.option.family:
        kept = [item for item in items if family_of(item) in config.option.family]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def family_of(item):
    """The family that a test has as a parameter, or the family of its case."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("family", getattr(parameters.get("case"), "family", None))


@pytest.fixture
def saw(request):
    """Record what a family does on an axis: "exact", or why it is refused.

    `record_property` would do, but warns that its values have no place in the xunit2 files of `--junitxml`.
    """

    def record(case, axis, outcome):
        request.node.user_properties.append(("families", (case.family, case.variant, axis, outcome)))

    return record


class Families:
    """Collects what the tests saw, from every worker."""

    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.config.stash[SEEN].update(tuple(value) for name, value in report.user_properties if name == "families")


def pytest_sessionstart(session):
    session.config.pluginmanager.register(Families(session.config))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if hasattr(config, "workerinput") or exitstatus != 0 or not config.stash[SEEN]:
        return
    from tests.support.families_table import PATH, page, parse, rows

    seen = rows(config.stash[SEEN])
    if config.option.write_families:
        PATH.write_text(page(parse(PATH.read_text()) | seen if config.option.family else seen))
    elif whole_run(config) and PATH.read_text() != page(seen):
        print("\ndocs/families.md is not what the tests saw: run make families")
        session.exitstatus = 1


def whole_run(config):
    """Whether every case of every family has run, the slow ones too."""
    selected = config.option.keyword or config.option.markexpr or config.option.family
    return not selected and config.args in ([], config.getini("testpaths"))


@pytest.fixture
def alone(monkeypatch):
    """The threads of the tests' own machinery are not looked at, so that processes are forked."""
    monkeypatch.setattr("threading.active_count", lambda: 1)
