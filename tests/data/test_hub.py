"""Datasets of the Hub and folders that `datasets` saved, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

import timechat.data.files.hub as hub
from timechat.conversation import Conversation
from timechat.data.sources import open_sources
from timechat.errors import DataError, FetchError
from timechat.recipe import Data

ROWS = {"text": ["one", "two", "three"], "label": [0, 1, 0]}


@pytest.fixture(autouse=True)
def no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "TQDM_DISABLE", True, raising=False)
    datasets.disable_progress_bars()


def saved(folder: Path) -> Path:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict(ROWS, features=features)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(folder)
    return folder


def said(name: str, **settings: Any) -> dict[str | None, list[tuple[str, ...]]]:
    found: dict[str | None, list[tuple[str, ...]]] = {}
    for source in open_sources([name], Data(**settings)):
        rows = (row.found for row in source.rows())
        found.setdefault(source.split, []).extend(
            tuple(m.content for m in row.messages) for row in rows if isinstance(row, Conversation)
        )
    return found


def test_a_folder_that_datasets_saved_is_read_with_its_splits_and_label_names(
    tmp_path: Path,
) -> None:
    rows = [("one", "bad"), ("two", "good"), ("three", "bad")]
    assert said(str(saved(tmp_path / "set"))) == {"train": rows, "test": rows}


def test_what_datasets_left_in_its_cache_is_no_second_copy_of_the_rows(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set") / "train"
    shutil.copy(folder / "data-00000-of-00001.arrow", folder / "cache-0123456789abcdef.arrow")
    sources = open_sources([str(folder)], Data())
    assert [source.name for source in sources] == [f"{folder}/data-00000-of-00001.arrow"]
    assert "cache-0123456789abcdef.arrow" in sources[0].notes["unread_files"]


class StandIn:
    """`HfApi` with one dataset of two configurations, laid out as the Hub's cache lays it out."""

    asked: list[tuple[str, str | None]]
    patterns: list[list[str]]

    def __init__(self, cache: Path, configs: list[dict[str, Any]]) -> None:
        self._cache, self._configs = cache, configs
        self.asked, self.patterns = [], []

    def dataset_info(self, repo: str, revision: str | None = None) -> Any:
        self.asked.append((repo, revision))
        if repo != "acme/faq":
            raise hub.OfflineModeIsEnabled("no such thing")
        return SimpleNamespace(sha="abc", card_data={"configs": self._configs})

    def snapshot_download(
        self, repo: str, repo_type: str, revision: str, allow_patterns: list[str]
    ) -> str:
        assert (repo_type, revision) == ("dataset", "abc")
        self.patterns.append(allow_patterns)
        blobs, snapshot = self._cache / "blobs", self._cache / "snapshots" / revision
        for number, name in enumerate(("en/train.jsonl", "en/test.jsonl", "de/train.jsonl")):
            if not any(Path(name).match(pattern) for pattern in allow_patterns):
                continue
            blobs.mkdir(parents=True, exist_ok=True)
            (blobs / str(number)).write_text(f'{{"question": "{name}?", "answer": "yes"}}\n')
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(blobs / str(number))
        return str(snapshot)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, cache: Path, configs: list[dict[str, Any]]
) -> StandIn:
    api = StandIn(cache, configs)
    monkeypatch.setattr(hub, "HfApi", lambda endpoint: api)
    return api


CONFIGS = [
    {"config_name": "en", "data_files": [{"split": "train", "path": "en/train*"},
                                         {"split": "test", "path": ["en/test*"]}]},
    {"config_name": "de", "data_files": "de/*"},
]  # fmt: skip


def test_a_hub_dataset_is_fetched_by_configuration_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = stand_in(monkeypatch, tmp_path / "cache", CONFIGS)
    found = said("acme/faq:en@v2")
    assert found == {"train": [("en/train.jsonl?", "yes")], "test": [("en/test.jsonl?", "yes")]}
    assert api.asked == [("acme/faq", "v2")]
    assert api.patterns == [["en/train*", "en/test*"]]


def test_without_configurations_every_file_of_rows_is_fetched_and_no_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = stand_in(monkeypatch, tmp_path / "cache", [])
    assert sum(map(len, said("acme/faq").values())) == 3
    assert "*.parquet" in api.patterns[0]
    assert not any(pattern.endswith((".py", "*")) for pattern in api.patterns[0])


@pytest.mark.parametrize(
    ("name", "said_"),
    [
        ("acme/faq", "several configurations: name one as acme/faq:NAME"),
        ("acme/faq:fr", "no configuration 'fr'; it has de, en"),
        ("acme/none", "the Hub does not give a dataset of that name: no such thing"),
    ],
)
def test_what_the_hub_does_not_have_is_one_error_that_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said_: str
) -> None:
    stand_in(monkeypatch, tmp_path / "cache", CONFIGS)
    with pytest.raises((FetchError, DataError)) as caught:
        open_sources([name], Data())
    assert said_ in str(caught.value)
