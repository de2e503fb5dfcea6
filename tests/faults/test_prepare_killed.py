"""`prepare` killed anywhere: the folder is there whole or not at all, and nothing half stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import COUNT, FAIL_FROM, KILL_AFTER, KILL_BEFORE, Zygote
from test_disk import errors_of

from timechat.stages.preparing.prepare import load_prepared
from timechat.store.folders import sweep

# Left to `make test-faults`.
LATER = (pytest.mark.slow, pytest.mark.faults)


@pytest.fixture(scope="module")
def whole(
    zygote: Zygote, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, str]:
    """How many calls preparing makes below the folder's own place, and what comes of it."""
    if not zygote.has_shim:
        return 0, ""
    out = tmp_path_factory.mktemp("prepared") / "rows"
    assert zygote.run(out, recipe, (str(out.parent), COUNT, 0, 0), prepare=True) == 0
    calls = int(Path(f"{out}.calls").read_text())
    assert calls > 20
    return calls, load_prepared(out).card.digest


def prepare_again(breaking: Zygote, recipe: Path, out: Path, digest: str) -> None:
    """What was left of `out` is none or whole; preparing again makes it whole, and leaves it alone
    in its place."""
    if out.exists():
        assert load_prepared(out).card.digest == digest
    assert breaking.run(out, recipe, prepare=True) == 0, errors_of(out)
    assert load_prepared(out).card.digest == digest
    assert sorted(p.name for p in out.parent.iterdir()) == ["rows", "rows.log"]


@pytest.mark.parametrize("share", [0.3, 0.95])
@pytest.mark.parametrize(
    "how", [KILL_BEFORE, pytest.param(KILL_AFTER, marks=LATER)], ids=["before", "after"]
)
def test_a_kill_leaves_no_half_folder(
    breaking: Zygote, recipe: Path, whole: tuple[int, str], tmp_path: Path, how: int, share: float
) -> None:
    out, (calls, digest) = tmp_path / "rows", whole
    at = max(1, round(share * calls))
    assert breaking.run(out, recipe, (str(tmp_path), how, at, 0), prepare=True) == -9
    prepare_again(breaking, recipe, out, digest)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("how", [KILL_BEFORE, KILL_AFTER], ids=["before", "after"])
def test_a_kill_at_any_system_call_leaves_the_old_folder_or_the_new(
    breaking: Zygote, recipe: Path, whole: tuple[int, str], tmp_path: Path, how: int
) -> None:
    """Preparing over what was prepared before."""
    calls, digest = whole
    for at in range(1, calls + 1):
        place = tmp_path / f"at-{at}"
        place.mkdir()
        out = place / "rows"
        assert breaking.run(out, recipe, prepare=True) == 0
        assert breaking.run(out, recipe, (str(place), how, at, 0), prepare=True) == -9
        sweep(place)
        assert out.exists()
        prepare_again(breaking, recipe, out, digest)


@pytest.mark.slow
@pytest.mark.faults
def test_a_disk_that_stops_writing_leaves_no_half_folder(
    breaking: Zygote, recipe: Path, whole: tuple[int, str], tmp_path: Path
) -> None:
    out, (calls, digest) = tmp_path / "rows", whole
    for at in range(1, calls, max(1, calls // 12)):
        assert breaking.run(out, recipe, (str(tmp_path), FAIL_FROM, at, 28), prepare=True) == 2
        assert "No space left on device" in errors_of(out)[-1]
        assert "Traceback" not in "\n".join(errors_of(out))
        assert not out.exists()
    prepare_again(breaking, recipe, out, digest)
