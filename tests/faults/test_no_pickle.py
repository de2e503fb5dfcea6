"""The guard over every test bites, and the source says nothing that it would have to bite."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from no_pickle import UntrustedError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import timechat

SOURCE = Path(timechat.__file__).parent
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def as_ours(code: str, **names: object) -> None:
    """Run `code` as if it stood in a module of timechat."""
    exec(code, {"__name__": "timechat.somewhere", **names})


@pytest.mark.parametrize("code", ["pickle.loads(data)", "pickle.load(io.BytesIO(data))"])
def test_unpickling_in_our_code_fails_the_test(code: str) -> None:
    import io

    data = pickle.dumps(1)
    assert pickle.loads(data) == 1  # another's code may
    with pytest.raises(UntrustedError, match=r"pickle\.load"):
        as_ours(code, pickle=pickle, io=io, data=data)


def test_torch_load_below_our_code_fails_the_test() -> None:
    with pytest.raises(UntrustedError, match=r"torch\.load"):
        as_ours("[f() for f in [lambda: torch.load('x')]]", torch=torch)


@pytest.mark.parametrize("face", [AutoConfig, AutoTokenizer, AutoModelForCausalLM])
def test_trusting_remote_code_below_our_code_fails_the_test(face: type) -> None:
    with pytest.raises(UntrustedError, match="trust_remote_code"):
        as_ours("face.from_pretrained('x', trust_remote_code=True)", face=face)


def untrusted(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "") in UNPICKLERS:
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield "torch.load"
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if ast.unparse(node.value) != "False":
                yield "trust_remote_code"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec"):
            yield ast.unparse(node.func)


def test_no_file_of_ours_unpickles_trusts_or_evaluates() -> None:
    """The guard sees this process only; the source is read for the children."""
    found = {
        f"{path.relative_to(SOURCE)}: {what}"
        for path in SOURCE.rglob("*.py")
        for what in untrusted(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()
    assert set(untrusted(ast.parse("import pickle\ntorch.load(x)\nf(trust_remote_code=y)"))) == {
        "pickle", "torch.load", "trust_remote_code",
    }  # fmt: skip
