"""Slow: wrong versions of the files, made in memory by replacing text; each must make the named test fail. The tables are in mutants_*.py."""

import contextlib
import io
import multiprocessing
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import mutants_conditions
import mutants_files
import mutants_labels
import mutants_networks
import mutants_noise
import pytest
import test_ranks
from conftest import ALL, ROOT

MUTANTS = mutants_noise.MUTANTS + mutants_conditions.MUTANTS + mutants_networks.MUTANTS
RANK_MUTANTS = mutants_noise.RANK_MUTANTS


class Case(NamedTuple):
    file: str
    right: str  # text of the file
    wrong: str | None  # what replaces it; None: the file as it is
    test: str  # that must fail
    script: str = "dcgan"  # whose parameters the test takes


CASES = [Case(script, *mutant[1:], script) for mutant in MUTANTS for script in mutant[0]]
CASES += [Case(*mutant) for mutant in mutants_files.MUTANTS + mutants_labels.MUTANTS]


class Only:
    """A pytest plugin that leaves the tests of one name, of their parameters those of one script."""

    def __init__(self, script: str, name: str):
        self.script, self.name = script, name

    def pytest_collection_modifyitems(self, items):
        def wanted(item) -> bool:
            values = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
            values += [part for value in values if isinstance(value, tuple) for part in value]
            scripts = {str(value).split(" ")[0] for value in values} & set(ALL)
            return item.originalname == self.name and scripts <= {self.script}

        items[:] = [item for item in items if wanted(item)]


def run_mutant(file: str, text: str, test: str, script: str, results):
    """In a child: put the mutated file where imports find it, and run the one test."""
    mutant = types.ModuleType(file)
    mutant.__file__ = str(ROOT / f"{file}.py")
    exec(compile(text, f"{file} (mutant)", "exec"), mutant.__dict__)
    sys.modules[file] = mutant
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        path, name = test.split("::")
        flags = ["-q", "-x", "-p", "no:cacheprovider", str(ROOT / "tests" / path)]
        code = pytest.main(flags, plugins=[Only(script, name)])
    results.put((int(code), output.getvalue()[-1500:]))


def outcome(file: str, text: str, test: str, script: str) -> tuple[int, str]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.tensorboard", "common", "pytest"])
    results = context.Queue()
    child = context.Process(target=run_mutant, args=(file, text, test, script, results))
    child.start()
    try:
        return results.get(timeout=240)
    finally:
        child.kill()
        child.join()


def source(file: str) -> str:
    return (ROOT / f"{file}.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outcomes(request):
    """What became of every selected case, as futures: two children at a time, in the order of the tests."""
    cases = [
        item.callspec.params["case"] for item in request.session.items if "case" in getattr(item, "fixturenames", ())
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {case: pool.submit(outcome, case.file, text_of(case), case.test, case.script) for case in cases}
        pool.shutdown(cancel_futures=True)


def text_of(case: Case) -> str:
    """The wrong version; without a replacement the file as it is."""
    text = source(case.file)
    return text if case.wrong is None else text.replace(case.right, case.wrong)


def test_the_table_is_large_and_up_to_date():
    """Catches mutants whose text is no longer in the script, and so would test nothing."""
    assert len(CASES) == len(set(CASES)) >= 330
    for case in [*CASES, *(Case(script, *mutant[1:]) for mutant in RANK_MUTANTS for script in mutant[0])]:
        assert case.right in source(case.file), case
        path, name = case.test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), case
        assert case.right != case.wrong


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}-{case.test.split('::')[1]}")
def test_mutant_is_killed(case, outcomes):
    code, output = outcomes[case].result()
    assert code == 1, f"survived, or the test did not run (exit {code}):\n{case}\n{output}"


UNCHANGED = sorted({Case(case.script, "", None, case.test, case.script) for case in CASES}, key=str)


@pytest.mark.slow
@pytest.mark.parametrize("case", UNCHANGED, ids=lambda case: f"{case.file}-{case.test.split('::')[1]}")
def test_the_unchanged_script_passes(case, outcomes):
    """Catches a test that fails whatever the script is."""
    code, output = outcomes[case].result()
    assert code == 0, f"{case}\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize(("scripts", "old", "new", "test"), RANK_MUTANTS)
def test_rank_mutant_is_killed(scripts, old, new, test, tmp_path, folder):
    """The same for two processes: here the mutants are files in a folder that comes first on the path."""
    (tmp_path / "mutants").mkdir()
    (tmp_path / "out").mkdir()
    for script in scripts:
        text = (ROOT / f"{script}.py").read_text().replace(old, new)
        (tmp_path / f"mutants/{script}.py").write_text(text)
    launch = test_ranks.start(tmp_path / "out", folder, first=tmp_path / "mutants")
    for script in scripts:
        with pytest.raises(AssertionError):
            getattr(test_ranks, test.split("::")[1])(launch, script)
