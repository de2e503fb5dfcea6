"""What is shipped with the project: the demo's data set, and the general suite."""

from pathlib import Path


def shipped(name: str) -> Path:
    """The path of a shipped file or folder, for example `general/items.jsonl`."""
    return Path(__file__).parent / name
