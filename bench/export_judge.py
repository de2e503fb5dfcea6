"""A GGUF answered by llama.cpp beside our own engine: perplexity of unseen prose, ids and answers.

    python bench/export_judge.py runs/mine mine.gguf prose.txt...

MODEL is anything that `timechat export` takes. Both read the same windows of the same tokens; the
model is heard in fp32 with its adapter beside the base. llama.cpp keeps its cache in f16.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from llama_cpp import Llama

from timechat.engine.torch import TorchEngine
from timechat.model.load import Loaded, load, resolve
from timechat.stages.exporting import hearing

WINDOW, NUM_WINDOWS, NUM_QUESTIONS, ANSWER = 256, 4, 8, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("prose", type=Path, nargs="+")
    given = parser.parse_args()
    loaded = load(resolve(given.model))
    hearing.widen(loaded)
    llama = Llama(str(given.gguf), n_ctx=1024, logits_all=True, verbose=False, n_threads=1)
    print(json.dumps({"gguf": given.gguf.name, **prose(loaded, llama, given.prose),
                      **answers(loaded, llama, given.model)}))  # fmt: skip
    llama.close()


def prose(loaded: Loaded, llama: Any, files: list[Path]) -> dict[str, Any]:
    """Perplexities, the mean change of a token's log-probability, and whether ids are equal."""
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    same_ids = True
    for file in files:
        text = file.read_text("utf-8")[20_000:40_000]
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        same_ids &= llama.tokenize(text.encode(), add_bos=False, special=False) == ids
        for place in range(NUM_WINDOWS):
            part = torch.tensor(ids[place * WINDOW : (place + 1) * WINDOW])
            with torch.inference_mode():
                logits = loaded.model(input_ids=part[None]).logits[0].float()
            ours.append(chosen(logits, part))
            llama.reset()
            llama.eval(part.tolist())
            theirs.append(chosen(torch.tensor(llama.scores[: len(part)]).float(), part))
    one, two = torch.cat(ours), torch.cat(theirs)
    return {
        "tokens": len(one),
        "same_ids": same_ids,
        "perplexity_model": round(math.exp(-one.mean()), 3),
        "perplexity_llama_cpp": round(math.exp(-two.mean()), 3),
        "nats_between": round(float((one - two).abs().mean()), 4),
    }


def chosen(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The log-probability of each token but the first."""
    return logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]


def answers(loaded: Loaded, llama: Any, model: str) -> dict[str, Any]:
    """Greedy answers to held-out questions, each rendered by its own side."""
    source = loaded.source
    places = [Path(model), *(source.adapter or source.folder).parents]
    run = next((place for place in places if (place / "recipe.yaml").is_file()), None)
    rows = hearing.held_out_rows(run)[:NUM_QUESTIONS]
    prompts = [loaded.renderer.prompt(row.question) for row in rows]
    said = TorchEngine(loaded.model).answers(prompts, ANSWER, loaded.renderer.stop_ids)
    same = same_prompts = 0
    for row, prompt, wanted in zip(rows, prompts, said, strict=True):
        messages = [{"role": m.role, "content": m.content} for m in row.question]
        done = llama.create_chat_completion(messages, max_tokens=ANSWER, temperature=0.0)
        same_prompts += done["usage"]["prompt_tokens"] == len(prompt)
        found = done["choices"][0]["message"]["content"]
        same += found.strip() == loaded.renderer.parse(wanted).strip()
    return {"questions": len(rows), "same_prompt_length": same_prompts, "same_answers": same}


if __name__ == "__main__":
    main()
