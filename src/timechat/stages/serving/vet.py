"""The gate on what `serve` loads into an engine: it answers like what was evaluated, or torch does.

An engine that starts is asked a few held-out prompts greedily, and its answers and
log-probabilities are held against those of the evaluated model in PyTorch. What that model says is
worked out by a child process (`reference` is its main), what the engine says once for each compiled
model; both are kept in the user's cache under the model's digest, so that the next start costs
nothing. Which engine a model gets is `serve`'s question, how much is allowed `hearing`'s.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timechat.engine.families import compiled_folder, gguf_file
from timechat.engine.process import ProcessEngine
from timechat.engine.protocol import Capabilities, Delta, Engine, Request, Sampling
from timechat.errors import ModelError, RunError
from timechat.export import gate
from timechat.store.files import read_json, write_json

# Raised when what is asked, or what is allowed, changes.
FORMAT = 2
# What an engine's answers depend on beside the model.
PACKAGES = {"openvino": "openvino-genai", "llama": "llama-cpp-python"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the evaluated model said to each prompt, and how far an engine may be from it."""

    lines: tuple[gate.Line, ...]
    tolerance: gate.Tolerance
    stops: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that an engine is to answer for. `run` is where held-out prompts are taken from."""

    folder: Path
    adapter: Path | None
    run: Path | None
    digest: str
    bits: int
    cache: Path
    engine: str = "openvino"

    @property
    def heard(self) -> Path:
        """What the evaluated model said: the same for all engines, which round weights alike."""
        return self._file("heard")

    @property
    def verdict(self) -> Path:
        return self._file("verdict" if self.engine == "openvino" else f"{self.engine}-verdict")

    @property
    def built(self) -> Path:
        """The folder of what the engine reads."""
        if self.engine == "llama":
            return gguf_file(self.digest, self.bits, self.cache).parent
        return compiled_folder(self.digest, self.bits, self.cache)

    def _file(self, what: str) -> Path:
        return self.cache / "vetted" / f"{self.digest[:24]}-{self.bits}bit-{what}.json"


def read_subject(row: Mapping[str, Any]) -> Subject:
    """A subject as `run_child` writes it."""
    paths = {key: Path(row[key]) if row[key] else None for key in ("adapter", "run")}
    return Subject(
        Path(row["folder"]),
        paths["adapter"],
        paths["run"],
        row["digest"],
        int(row["bits"]),
        Path(row["cache"]),
        row["engine"],
    )


class VettedEngine:
    """An engine behind the gate. Where it is refused, what `instead` makes answers and the note
    says why; without an `instead`, starting raises ModelError. `build` makes what it reads."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        instead: Callable[[], Engine] | None,
        subject: Subject,
        make: Callable[[dict[str, Any]], Engine] = ProcessEngine,
        build: Callable[[Subject], Awaitable[None]] | None = None,
    ) -> None:
        self.spec, self.instead = spec, instead
        self._subject, self._build = subject, build
        self._engine: Engine = make(dict(spec))
        self._note = ""

    @property
    def capabilities(self) -> Capabilities:
        able = self._engine.capabilities
        return replace(able, note="; ".join(part for part in (self._note, able.note) if part))

    @property
    def running(self) -> int:
        return self._engine.running

    @property
    def ready(self) -> bool:
        return self._engine.ready

    async def start(self) -> None:
        """Start what may answer for the model. Raises ModelError where nothing may."""
        verdict = known_verdict(self._subject)
        if verdict is None or verdict.passed:
            try:
                if self._build is not None:
                    await self._build(self._subject)
                await self._engine.start()
            except ModelError as error:
                await self._fall_back(str(error))
                return
        if verdict is None:
            verdict = await self._vet()
        if verdict.passed:
            self._note = f"gate: {verdict.figure}"
        else:
            await self._fall_back(f"the gate refused it ({verdict.refused}): {verdict.figure}")

    async def _vet(self) -> gate.Verdict:
        try:
            wanted = known_answers(self._subject) or await hear_in_child(self._subject)
            verdict = await ask(self._engine, wanted)
        except BaseException:
            await self._engine.stop()
            raise
        keep_verdict(self._subject, verdict)
        if not verdict.passed:
            await self._engine.stop()
        return verdict

    async def _fall_back(self, why: str) -> None:
        kind = self.spec["kind"]
        if self.instead is None:
            raise ModelError(f"{self.spec['name']} cannot be served by {kind}: {why}")
        first, *_ = why.splitlines()
        self._note = f"not on {kind}: {first}"
        self._engine = self.instead()
        await self._engine.start()

    def stream(self, request: Request) -> AsyncGenerator[Delta]:
        return self._engine.stream(request)

    async def drain(self, deadline_s: float) -> bool:
        return await self._engine.drain(deadline_s)

    async def stop(self) -> None:
        await self._engine.stop()


async def ask(engine: Engine, wanted: Wanted) -> gate.Verdict:
    """All prompts at once, as users would."""
    named = 0 if engine.capabilities.logprobs is not None else None
    lines = [line for line in wanted.lines if line.greedy and line.answer]
    stops = frozenset(wanted.stops)

    async def answer(line: gate.Line) -> gate.Said:
        sampling = Sampling(max_new_tokens=len(line.answer))
        request = Request(line.prompt, sampling, stops, logprobs=named)
        said = [delta async for delta in engine.stream(request) if delta.token is not None]
        nats = [delta.logprob for delta in said if delta.logprob is not None]
        return gate.Said([delta.token for delta in said if delta.token is not None], nats)

    said = dict(zip([line.prompt for line in lines], await asyncio.gather(*map(answer, lines)),
                    strict=True))  # fmt: skip
    return gate.judge_engine(lines, lambda prompt, _: said[tuple(prompt)], wanted.tolerance, stops)


async def hear_in_child(subject: Subject) -> Wanted:
    """What the evaluated model says, from a process of its own: its memory goes with it."""
    status, last = await run_child("timechat.stages.serving.reference", subject)
    found = known_answers(subject)
    if status or found is None:
        where = subject.heard
        raise ModelError(f"the evaluated model could not be heard for the gate ({where}): {last}")
    return found


async def run_child(module: str, subject: Subject) -> tuple[int, str]:
    """Run a module that is told the subject; its exit status, and the last line of its errors."""
    order = {"subject": {k: str(v) if v is not None else None for k, v in asdict(subject).items()}}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate(json.dumps(order).encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    last = errors.decode(errors="replace").strip().rpartition("\n")[2]
    return process.returncode or 0, last


def keep_answers(subject: Subject, wanted: Wanted) -> None:
    row = {"made_by": _made_by("torch", "transformers"), "wanted": wanted}
    write_json(subject.heard, row)


def known_answers(subject: Subject) -> Wanted | None:
    row = _read(subject.heard, _made_by("torch", "transformers"))
    try:
        found = row["wanted"]
        lines = tuple(_line(line) for line in found["lines"])
        return Wanted(lines, gate.Tolerance(**found["tolerance"]), tuple(found["stops"]))
    except (KeyError, TypeError, ValueError):
        return None


def keep_verdict(subject: Subject, verdict: gate.Verdict) -> None:
    row = {"made_by": _made_by(PACKAGES[subject.engine]), "of": _stamp(subject), "verdict": verdict}
    write_json(subject.verdict, row)


def known_verdict(subject: Subject) -> gate.Verdict | None:
    """What was found of exactly these compiled files, or None."""
    row = _read(subject.verdict, _made_by(PACKAGES[subject.engine]))
    try:
        if row["of"] != _stamp(subject):
            return None
        found: dict[str, Any] = dict(row["verdict"])
        found["tolerance"] = gate.Tolerance(**found["tolerance"])
        return gate.Verdict(**found)
    except (KeyError, TypeError, ValueError):
        return None


def _stamp(subject: Subject) -> list[list[Any]]:
    """The engine's own files by size and time of writing: another file is another model."""
    found = [(p.name, p.stat()) for p in sorted(subject.built.glob("*"))]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def _read(path: Path, made_by: dict[str, Any]) -> dict[str, Any]:
    """The file's content where it is of this code; else nothing."""
    try:
        row: Any = read_json(path) if path.is_file() else {}
    except (OSError, RunError):
        return {}
    return row if isinstance(row, dict) and row.get("made_by") == made_by else {}


def _made_by(*packages: str) -> dict[str, Any]:
    return {"format": FORMAT, **{name: version(name) for name in packages}}


def _line(row: dict[str, Any]) -> gate.Line:
    lists = ("prompt", "answer", "nats", "leads")
    parts: dict[str, Any] = {**row, **{name: tuple(row[name]) for name in lists}}
    return gate.Line(**parts)
