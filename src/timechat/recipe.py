"""The recipe: the one typed configuration of a run, section by section.

This file only says what may be written, and what is wrong where something else is: unknown keys are
refused with the nearest known name. Files of recipes are `recipe_file`'s, what `auto` means is the
plan's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from timechat.errors import RecipeError, nearest

Auto = Literal["auto"]
# A number of layers from the end, a range, or a list of numbers, ranges and patterns of names.
LayerChoice = int | str | tuple[int | str, ...]
DataShape = Literal[
    "auto", "chat", "sharegpt", "alpaca", "prompt_completion", "question_answer", "text_label",
    "preference", "kto", "text",
]  # fmt: skip


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clean(Section):
    """What is done about rows that are not as they should be; docs/data.md says each at length."""

    whitespace: Literal["strip", "keep"] = "strip"
    roles: Literal["drop", "mend"] = Field(
        default="drop", description="mend: join turns of one role, cut what no answer follows"
    )
    empty: Literal["drop", "keep"] = "drop"
    repeated_turns: Literal["drop", "report", "off"] = "drop"
    residue: Literal["drop", "strip", "report", "off"] = Field(
        default="drop", description="a template's control tokens inside an answer"
    )
    damage: Literal["drop_lost", "drop", "repair", "report", "off"] = Field(
        default="drop_lost",
        description="drop_lost: drops rows with lost characters, reports mojibake",
    )
    personal: Literal["report", "replace", "drop", "off"] = "report"
    language: Literal["report", "off"] = "report"
    languages: tuple[str, ...] = Field(default=(), description="rows in others are dropped")
    duplicates: Literal["drop", "keep"] = "drop"
    near: Literal["cluster", "drop", "off"] = Field(
        default="cluster", description="rows that ask nearly the same: kept on one side, or dropped"
    )
    max_tokens: Annotated[int, Field(ge=16)] | None = Field(
        default=None, description="longest row, by the base's tokenizer"
    )
    too_long: Literal["drop", "shorten", "refuse"] = Field(
        default="drop", description="rows over max_tokens; shorten: by whole turns, from the end"
    )
    label_noise: Literal["off", "report", "drop"] = Field(
        default="off", description="labels that the other rows contradict; needs cleanlab"
    )
    balance: Literal["off", "sample", "weight"] = Field(
        default="off", description="even out the training rows by dropping or by weights"
    )
    balance_by: Literal["label", "language", "source"] = "label"


class Data(Section):
    """What to train and test on."""

    train: tuple[str, ...] = Field(
        default=(), description="files of conversations, or CSV with `columns`"
    )
    validation: tuple[str, ...] = Field(
        default=(), description="empty: split off the training rows"
    )
    test: tuple[str, ...] = Field(default=(), description="empty: split off the training rows")
    prepared: str | None = Field(default=None, description="a folder left by `timechat prepare`")
    columns: dict[str, str] = Field(default={}, description="role: column or field name")
    shape: DataShape = Field(default="auto", description="what the rows are; auto: told by looking")
    encoding: str = Field(default="auto", description="of text files; auto: told by looking")
    delimiter: str = Field(default="auto", description="of tables; auto: told by looking")
    tool_calls: Literal["text", "drop"] = Field(
        default="text", description="text: written as <tool_call>…</tool_call>"
    )
    passage_characters: Annotated[int, Field(ge=100)] = Field(
        default=2000, description="how long a passage of plain text is, about"
    )
    system: str = Field(default="", description="the system prompt of every row that brings none")
    overlap: Literal["refuse", "drop", "allow"] = Field(
        default="refuse", description="training rows that ask what an evaluation row asks"
    )
    clean: Clean = Clean()
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.10
    seed: Annotated[int, Field(ge=0)] = 0


class Adapt(Section):
    """What every method has: how strongly it is applied, and the activation it may change."""

    strength: Annotated[float, Field(ge=0, le=1.25)] | Auto = Field(
        default="auto", description="share of what was learned that is kept; auto: by validation"
    )
    activation: str | None = Field(
        default=None, description="another activation for the MLP layers, such as relu"
    )


class Lora(Adapt):
    """Low-rank adapters (Hu et al. 2021) on the linear layers named by `targets` and `layers`."""

    method: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto", description="auto: 2 × rank"
    )
    rslora: bool = Field(
        default=False, description="scale by alpha / √rank (Kalajdzievski 2023), not alpha / rank"
    )
    targets: Literal["all", "attention", "mlp"] | tuple[str, ...] = Field(
        default="all", description="all, attention or mlp, or a list of names and patterns"
    )
    layers: LayerChoice = Field(
        default="all", description="a number: the last so many; a range such as 20-29; a list"
    )


class Qlora(Lora):
    """LoRA beside a frozen base in 4 bits (NF4) or 8 (Dettmers et al. 2023, arXiv:2305.14314)."""

    method: Literal["qlora"] = "qlora"  # type: ignore[assignment]
    bits: Literal[4, 8] = 4


class Full(Adapt):
    """Every weight learns."""

    method: Literal["full"] = "full"


class Layers(Adapt):
    """Some of the model's own layers learn; what lies below them is frozen."""

    method: Literal["layers"] = "layers"
    layers: LayerChoice = Field(
        default="auto",
        description="a number: the last so many; a range such as 20-29; a list of numbers, ranges "
        "and patterns of names; auto: the last sixth",
    )
    embeddings: bool = Field(default=False, description="whether the input embeddings learn too")
    head: bool = Field(default=False, description="whether the output head and its norm learn too")


def _method_of(value: Any) -> Any:
    if isinstance(value, Mapping):
        return cast(Mapping[str, Any], value).get("method", "lora")
    return getattr(value, "method", None)


METHODS: dict[str, type[Adapt]] = {"lora": Lora, "full": Full, "layers": Layers, "qlora": Qlora}
Method = Annotated[
    Annotated[Lora, Tag("lora")]
    | Annotated[Full, Tag("full")]
    | Annotated[Layers, Tag("layers")]
    | Annotated[Qlora, Tag("qlora")],
    Discriminator(_method_of),
]


class Train(Section):
    """How to learn."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | Auto = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    batch_rows: Annotated[int, Field(ge=1, le=4096)] | Auto = Field(
        default="auto", description="conversations in one optimizer step"
    )
    micro_rows: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto", description="conversations worked on at a time; changes memory, no number"
    )
    recompute: bool | Auto = Field(
        default="auto", description="work layers out again in the backward pass, to save memory"
    )
    replay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.12,
        description="share of the tokens computed in a step that hold the model to what it was",
    )
    replay_weight: Annotated[float, Field(ge=0, le=100)] = Field(
        default=1.0, description="weight of the divergence from the base model on those tokens"
    )
    replay_from: Literal["shipped", "base"] = Field(
        default="shipped",
        description="general texts to hold the model on: shipped ones, or the base's own answers",
    )
    word_dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        default="auto",
        description="share of a question's words left out at random, anew at each sight of the row",
    )
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.3, description="share of the steps that the served weights are averaged over"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="on matrices; norms and biases are left alone"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate goes on after the warm-up"
    )
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="share of the steps"
    )
    clip: Annotated[float, Field(gt=0)] = Field(default=1.0, description="largest gradient norm")
    max_length: Annotated[int, Field(ge=16)] | Auto = Field(
        default="auto", description="longest row in tokens; longer ones are dropped and counted"
    )
    validations: Annotated[int, Field(ge=1, le=1000)] | Auto = Field(
        default="auto", description="how often to validate during training"
    )
    checkpoint_every: Annotated[int, Field(ge=1)] | Auto = "auto"
    patience: Annotated[int, Field(ge=1)] = Field(
        default=3, description="validations in a row that are clearly worse before training stops"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    deterministic: bool = Field(
        default=False, description="on CUDA, only kernels that repeat to the bit; CPUs always do"
    )


class Evaluate(Section):
    """How the proof is made."""

    max_questions: Annotated[int, Field(ge=1)] = 400
    max_new_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto", description="longest answer; auto: from the reference answers"
    )
    retention_margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    retention: tuple[str, ...] = Field(
        default=(), description="files of your own questions that must not be forgotten"
    )


class Recipe(Section):
    """One run, as the user writes it."""

    base: str = Field(default="starter", description="a Hub id, a folder, or starter")
    data: Data = Data()
    adapt: Method = Lora()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a mapping and freeze it. Raises RecipeError naming every fault."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(fault)) for fault in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(lines)) from None


def _explain(fault: dict[str, Any]) -> str:
    loc = [str(part) for part in fault["loc"]]
    if fault["type"] == "union_tag_invalid":
        tag = str(fault["ctx"]["tag"])
        return f"adapt.method = {tag!r} is no method ({nearest(tag, METHODS)})"
    method = None
    if loc[0] == "adapt" and len(loc) > 1 and loc[1] in METHODS:
        method = loc.pop(1)
    place = ".".join(loc)
    if fault["type"] == "extra_forbidden":
        known = _keys_at(loc[:-1], method)
        whose = f" of adapt.method = {method}" if method else ""
        return f"unknown key {place!r}{whose} ({nearest(loc[-1], known)})"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place} = {fault.get('input')!r}: {message}"


def _keys_at(path: list[str], method: str | None) -> list[str]:
    if method is not None:
        return list(METHODS[method].model_fields)
    model: type[BaseModel] = Recipe
    for name in path:
        field = model.model_fields.get(name)
        kind = field.annotation if field is not None else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
    return list(model.model_fields)
