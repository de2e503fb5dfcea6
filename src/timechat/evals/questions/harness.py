"""lm-evaluation-harness's own seam, `LM`, over our likelihoods and our engine.

Tasks, prompts, few-shot examples, metrics and their names are the harness's; only the model's side
is ours, so that what packing, adapters and quantised weights give is what is measured. Tokens are
cut as the harness cuts them for a transformers model. It needs `pip install "timechat[harness]"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from timechat.data.pack import Example
from timechat.engine.torch import TorchEngine, window_of
from timechat.errors import DataError
from timechat.evals.questions.run import likelihoods

MAX_NEW_TOKENS = 256
"""What the harness generates at most where a task does not say."""


class HarnessModel(TemplateLM):
    """A loaded model, as the harness asks one. `cut` counts what did not fit into its window."""

    backend = "causal"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.tokenizer: Any = tokenizer
        self.progress = progress
        self.window = window_of(model)
        self.cut = 0

    @property
    def tokenizer_name(self) -> str:
        return self.name

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None and string.startswith(self._text(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        rows = [
            self._row(str(i), context, wanted) for i, (_, context, wanted) in enumerate(requests)
        ]
        found = likelihoods(self.model, rows, self.progress)
        return [(-row.nats, row.hits == row.num_tokens) for row in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of whole texts, in windows as the harness cuts them."""
        return [self._rolling(request.args[0]) for request in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _row(self, name: str, context: list[int], wanted: list[int]) -> Example:
        ids = [*context, *wanted]
        if len(ids) > self.window:
            self.cut += 1
            ids = ids[-self.window :]
        quiet = len(ids) - len(wanted)
        if quiet < 1:
            raise DataError(
                f"the harness wants the likelihood of {len(wanted)} tokens at once, and the "
                f"window of {self.name} holds {self.window}"
            )
        return Example(tuple(ids), (0.0,) * quiet + (1.0,) * len(wanted), name)

    def _rolling(self, text: str) -> float:
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.window - 1,
            context_len=1,
        )
        pieces = [(None, *utils.make_disjoint_window(window)) for window in windows]
        return sum(value for value, _ in self._loglikelihood_tokens(pieces))

    def _generate(self, context: str, asked: Mapping[str, Any]) -> str:
        options: dict[str, Any] = {**normalize_gen_kwargs(dict(asked), MAX_NEW_TOKENS)}
        if options.get("do_sample"):
            raise DataError("a task of the harness wants drawn answers; only the likeliest is had")
        until = handle_stop_sequences(options["until"], eos=self._text(self.eot_token_id))
        longest = options["max_gen_toks"]
        if longest >= self.window:
            raise DataError(
                f"a task wants {longest} new tokens; the window of {self.name} is {self.window}"
            )
        ids = self.tok_encode(context)
        if len(ids) > self.window - longest:
            self.cut += 1
            ids = ids[-(self.window - longest) :]
        stop = frozenset({self.eot_token_id})
        said = TorchEngine(self.model).answers([ids], longest, stop)[0]
        self.progress(1)
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        return postprocess_generated_text(text, until, None)

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token], skip_special_tokens=False))
