"""A served run whose answers follow its link, and a lesson of seconds: no model anywhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from serve.conftest import Site, build_responder, build_site, says
from serve.studio.conftest import with_studio
from serve.studio.test_studio_api import build_run
from timechat.engine.fake import FakeEngine
from timechat.manifest import write_manifest
from timechat.model.load import Source
from timechat.serve.registry import Served
from timechat.serve.studio.lessons import Lessons
from timechat.stages.serving.serve import Opened

# Whose children the fixture of this folder ends.
BEGUN: list[Lessons] = []
WRONG, RIGHT = "At 8.", "At 9:30."
# What `timechat learn` leaves, without the learning: a checkpoint, progress on the way, a version.
LESSON = """
import json, shutil, sys, time
from pathlib import Path
run, decision = Path(sys.argv[1]), sys.argv[2]
folder = run / "learned" / "001"
shutil.rmtree(folder, ignore_errors=True)
shutil.copytree(run / "checkpoints" / "step-000020", folder / "checkpoints" / "step-000040")
progress = run / "learned" / "progress.json"
for done in range(1, 5):
    told = {"doing": "learning", "done": done, "of": 4, "loss": 1.0 / done, "process": 1}
    beside = progress.with_suffix(".new")
    beside.write_text(json.dumps(told))
    beside.rename(progress)
    time.sleep(float(sys.argv[3]))
progress.unlink()
reach = {"before": 0.56, "after": 0.57, "difference": 0.01, "ci95": [-0.02, 0.04], "n": 160,
         "clusters": 40, "verdict": "kept", "unit": "share"}
offered = decision == "offered"
sets = {
    "corrections": {"right_before": 0, "right_after": int(offered), "n": 1, "questions": 1,
                    "made_by_rule": 0, "verdict": "learned" if offered else "not_learned"},
    "earlier": {"name": "earlier test set", **reach},
    "retention": {"name": "general ability", **reach},
}
sample = {"correction": "c", "asked": "When do you open?", "question": "What time do you open?",
          "made_by_rule": False, "before": "At 8.", "after": "At 9:30.", "reference": "At 9:30.",
          "right_before": False, "right_after": True}
version = {
    "number": 1, "parent": "checkpoints/step-000020", "decision": decision, "corrections": "d",
    "checkpoint": "learned/001/checkpoints/step-000040", "num_corrections": 1, "seed": 0,
    "reasons": [] if offered else ["only 0 of 1 corrections are right in other words"],
    "sets": sets, "samples": [sample], "contradicted": [], "seconds": 151.2, "made": "today",
}
(folder / "version.json").write_text(json.dumps(version))
"""


def build_story(
    folder: Path,
    decision: str = "offered",
    step_s: float = 0.2,
    interval_s: float = 0.0,
    answers: tuple[str, str] = (WRONG, RIGHT),
) -> tuple[Site, Path]:
    """A site that serves the run `shop`, and the run's folder."""
    run = build_run(folder / "shop")
    checkpoint = run / "checkpoints" / "step-000020"
    (checkpoint / "weights.json").write_text("{}")
    write_manifest(checkpoint, {"step": 20})
    os.symlink("checkpoints/step-000020", run / "best")
    site = with_studio(build_site(), folder)
    desk, follower = site.app.state.desk, site.app.state.follower
    BEGUN.append(desk.lessons)
    desk.lessons.command = lambda run, seed: [
        sys.executable, "-c", LESSON, str(run), decision, str(step_s),
    ]  # fmt: skip

    def serve_link(opened: Opened, _: object) -> Served:
        is_new = "learned" in os.path.realpath(run / "best")
        engine = FakeEngine(says(answers[is_new]), interval_s=interval_s)
        details = {"run": str(run)}
        return Served("shop", build_responder(engine), f"digest-{is_new}", details=details)

    follower.open = serve_link
    opened = Opened("shop", Source(str(run), checkpoint), "d")

    async def open_run() -> None:
        if not any(model.name == "shop" for model in site.registry):
            await site.registry.add(serve_link(opened, None))
            follower.watch(opened)

    site.open = open_run  # type: ignore[method-assign]
    return site, run
