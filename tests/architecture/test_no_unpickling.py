"""No line of the product unpickles a file or runs a text: what tests with planted pickles say of some roads, of all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("cluster", "data_shards", "maetrain")
# modules whose readers run code; numpy's run none unless they are allowed to
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "skops"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.hub.load", "torch.jit.load", "torch.export.load",
         "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "importlib.import_module",
         "os.system", "os.popen", "tar.extract", "tar.extractall", "shutil.unpack_archive"}  # fmt: skip


def careless(source: str) -> Iterator[str]:
    """The lines that could run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            allows = [word.arg for word in node.keywords if word.arg in ("allow_pickle", "shell")]
            names = [*allows, *([called] if called in CALLS or called.endswith((".extractall", ".extract")) else [])]
            yield from (f"{node.lineno}: {name}" for name in names)
            continue
        else:
            continue
        yield from (f"{node.lineno}: {name}" for name in names if name.split(".")[0] in MODULES or name in CALLS)


@pytest.mark.parametrize("package", PRODUCT)
def test_the_product_unpickles_nothing(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in careless(path.read_text())]
    assert files and not found, found


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "from torch import load", "torch.load(path)", "yaml.load(text)",
     "np.load(path, allow_pickle=True)", "eval(text)", "archive.extractall(folder)", "run(line, shell=True)"],
)  # fmt: skip
def test_a_planted_line_is_found(line: str) -> None:
    assert [found.split(":")[0] for found in careless(f"def f():\n    {line}\n")][:1] == ["2"]


@pytest.mark.parametrize("line", ["network.eval()", "re.compile(text)", "np.load(path)", "tar.extractfile(member)"])
def test_a_harmless_line_is_none(line: str) -> None:
    assert not list(careless(line))
