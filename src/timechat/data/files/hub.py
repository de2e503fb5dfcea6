"""Datasets of the Hugging Face Hub: their data files, fetched to its own cache.

Only files of rows are fetched, never a loading script. What they hold is told by looking, as for
any folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from timechat.errors import FetchError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?(@[\w./-]+)?")
ENDINGS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow", ".jsonl.gz", ".csv.gz",
           ".json.gz", ".jsonl.zst", ".txt")  # fmt: skip
# A name it refuses, an answer that is none, and no answer: the last is of the HTTP library that the
# Hub's client uses (httpx or, since 2.0, httpx2), so it is taken from there, and is no OSError.
FAULTS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled,
          HTTPError, OSError)  # fmt: skip


def is_hub_id(name: str) -> bool:
    """Whether `name` can be OWNER/NAME, with `:CONFIG` and `@REVISION` behind it."""
    return _ID.fullmatch(name) is not None and not name.lower().endswith(ENDINGS)


def fetch(name: str) -> Path:
    """The folder with the dataset's data files. Raises FetchError."""
    bare, _, revision = name.partition("@")
    repo, _, config = bare.partition(":")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        info = api.dataset_info(repo, revision=revision or None)
        patterns = _patterns(repo, cast(Any, info).card_data, config)
        folder = api.snapshot_download(
            repo, repo_type="dataset", revision=info.sha, allow_patterns=patterns
        )
    except FAULTS as error:
        why = " ".join(str(error).split())[:200]
        raise FetchError(
            f"no file or folder at {name}, and the Hub does not give a dataset of that name: {why}"
        ) from None
    return Path(folder)


def _patterns(repo: str, card: Any, config: str) -> list[str]:
    """Which files to fetch: those of the named configuration, or every file of rows."""
    configs = {c["config_name"]: c for c in (card or {}).get("configs") or []}
    if not config and len(configs) > 1 and "default" in configs:
        config = "default"
    if not config and len(configs) > 1:
        known = ", ".join(sorted(configs)[:20])
        raise FetchError(f"{repo} has several configurations: name one as {repo}:NAME ({known})")
    if config and config not in configs:
        known = ", ".join(sorted(configs)[:20]) or "none"
        raise FetchError(f"{repo} has no configuration {config!r}; it has {known}")
    if not config:
        return [f"*{ending}" for ending in ENDINGS]
    files = configs[config].get("data_files") or [f"{config}/*"]
    patterns: list[str] = []
    for entry in [files] if isinstance(files, str) else files:
        path = entry.get("path", []) if isinstance(entry, dict) else entry
        patterns += [path] if isinstance(path, str) else path
    return patterns
