"""The plan: every derived number has a rule, the recipe's own values win, and it can say no."""

from __future__ import annotations

from dataclasses import replace

from timechat.planning.facts import Machine, Rows, Shape
from timechat.planning.plan import make_plan
from timechat.recipe import parse_recipe

ROWS = Rows(400, 26_000, 16, 8_000, 120, 20, 9.0)
SHAPE = Shape(134_515_008, 4_884_480, 106_203_456, 30, 576, 1536, 49_152, 8192, 269_030_016, 2)
MACHINE = Machine("a laptop", 8 * 2**30, 100 * 2**30, 600e9)


def plan(machine: Machine = MACHINE, rows: Rows = ROWS, **train: object):
    return make_plan(parse_recipe({"train": train}), rows, SHAPE, machine)


def test_every_number_has_a_rule() -> None:
    assert all(number.rule for number in plan().numbers.values())


def test_the_recipes_own_numbers_win() -> None:
    found = plan(epochs=2, learning_rate=0.01, batch_rows=4)
    assert (found["epochs"], found["learning_rate"], found["batch_rows"]) == (2, 0.01, 4)
    assert found["steps"] == 200
    assert found.numbers["epochs"].rule == "as the recipe says"


def test_few_rows_are_seen_more_often_than_many() -> None:
    assert plan()["epochs"] > plan(rows=replace(ROWS, num_train=10_000))["epochs"]


def test_more_rows_make_larger_steps() -> None:
    sizes = [plan(rows=replace(ROWS, num_train=n))["batch_rows"] for n in (100, 400, 5000, 10_000)]
    assert sizes == [8, 16, 32, 64]


def test_replay_is_a_share_of_what_a_step_computes() -> None:
    # Rows of 65 tokens of which 40 open every row: a step of 16 computes 40 + 16 * 25.
    found = plan(rows=replace(ROWS, shared_tokens=40), replay=0.2)
    assert found["computed_tokens"] == 440
    assert found["replay_tokens"] == 110


def test_rows_that_are_read_whole_share_nothing() -> None:
    padded = replace(SHAPE, reading=("padded", "side by side"))
    found = make_plan(parse_recipe({}), replace(ROWS, shared_tokens=40), padded, MACHINE)
    assert found["computed_tokens"] == 16 * 65


def test_without_a_weight_on_it_there_is_no_replay() -> None:
    assert plan(replay=0)["replay_tokens"] == 0
    assert plan(replay_weight=0)["replay_tokens"] == 0


def test_a_shared_opening_saves_time() -> None:
    long = plan(rows=replace(ROWS, shared_tokens=40))["train_seconds"]
    assert long < plan(rows=replace(ROWS, shared_tokens=0))["train_seconds"]


def test_a_machine_too_small_is_told_the_number() -> None:
    found = plan(machine=replace(MACHINE, memory_bytes=2**29))
    assert not found.fits
    assert "0.5 GiB are free" in found.refusal


def test_a_full_disk_is_told_before_training() -> None:
    found = plan(machine=replace(MACHINE, disk_bytes=1000))
    assert not found.fits
    assert "disk" in found.refusal


def test_a_faster_machine_takes_less_time() -> None:
    fast = plan(machine=replace(MACHINE, matrix_flops=2 * MACHINE.matrix_flops))
    assert (
        fast["train_seconds"] * 2 == plan()["train_seconds"]
        or abs(fast["train_seconds"] * 2 - plan()["train_seconds"]) <= 2
    )


def test_words_are_left_out_of_short_questions_only() -> None:
    assert plan()["word_dropout"] > 0
    assert plan(rows=replace(ROWS, question_words=120.0))["word_dropout"] == 0
    assert plan(word_dropout=0.5)["word_dropout"] == 0.5


def test_no_words_are_left_out_of_questions_that_are_seen_once() -> None:
    assert plan(rows=replace(ROWS, num_train=10_000))["word_dropout"] == 0
    assert plan(epochs=2)["word_dropout"] > 0


def test_a_wider_model_learns_at_a_smaller_rate() -> None:
    llama = make_plan(parse_recipe({}), ROWS, replace(SHAPE, hidden=4096), MACHINE)
    assert plan()["learning_rate"] == 2e-3
    assert 2e-4 < llama["learning_rate"] < 4e-4


def lower(
    adapt: dict[str, object], shape: Shape = SHAPE, machine: Machine = MACHINE, **train: object
):
    return make_plan(parse_recipe({"adapt": adapt, "train": train}), ROWS, shape, machine)


def test_a_frozen_trunk_is_kept_where_it_fits_and_pays() -> None:
    adapt: dict[str, object] = {"method": "layers"}
    shape = replace(SHAPE, lowest=25)
    found = lower(adapt, shape)
    assert (found["trunk"], found["word_dropout"]) == ("memory", 0.0)
    assert found["trunk_bytes"] == round(26_000 / 0.88) * 576 * 2
    assert lower(adapt, shape, epochs=1)["trunk"] == "no"
    assert lower(adapt, shape, word_dropout=0.2)["trunk"] == "no"
    assert lower({**adapt, "activation": "relu"}, shape)["trunk"] == "no"
    assert lower(adapt)["trunk"] == "no"
    need = found["memory_bytes"]
    tight = replace(MACHINE, memory_bytes=need - 1000)
    assert lower(adapt, shape, tight)["trunk"] == "disk"


def test_memory_is_found_in_micro_rows_first_and_then_by_working_out_again() -> None:
    whole = lower({"method": "lora"})
    assert (whole["micro_rows"], whole["recompute"]) == (16, False)
    some = lower(
        {"method": "lora"}, machine=replace(MACHINE, memory_bytes=whole["memory_bytes"] - 1)
    )
    assert some["micro_rows"] < 16
    assert some.fits
    least = lower({"method": "lora"}, micro_rows=1)["memory_bytes"]
    last = lower({"method": "lora"}, machine=replace(MACHINE, memory_bytes=least - 1))
    assert (last["micro_rows"], last["recompute"]) == (1, True)


def test_four_bits_take_less_than_the_weights_and_full_takes_more() -> None:
    wide = replace(
        SHAPE, parameters=6_738_415_616, trunk=6_476_271_616, weight_bytes=13_476_831_232
    )
    sizes = {
        name: lower({"method": name}, wide)["memory_bytes"] for name in ("qlora", "lora", "full")
    }
    assert sizes["qlora"] <= sizes["lora"] < sizes["full"]
