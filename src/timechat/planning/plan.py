"""The plan of a run: the recipe's `auto`s resolved, and whether it fits.

Pure arithmetic over what is known of the model, the rows and the machine; measuring those is the
stage's work. Every number carries the rule that made it, so that it can be argued with.
"""

from __future__ import annotations

from timechat.planning.facts import GIB, Facts, Machine, Numbers, Rows, Shape
from timechat.planning.resources import plan_bytes, plan_seconds
from timechat.planning.settings import plan_learning, plan_lengths
from timechat.recipe import Lora, Recipe
from timechat.records import Derived, Plan


def make_plan(recipe: Recipe, rows: Rows, shape: Shape, machine: Machine) -> Plan:
    """The plan of a run; `fits` is False, with the reason, when memory or disk is too small."""
    facts = Facts(recipe, rows, shape, machine)
    numbers = _count(facts)
    plan_learning(numbers, facts)
    plan_lengths(numbers, facts)
    plan_bytes(numbers, facts)
    plan_seconds(numbers, facts)
    refusal = _refusal(numbers, machine)
    about = {
        "name": machine.name,
        "memory_bytes": machine.memory_bytes,
        "disk_bytes": machine.disk_bytes,
        "matrix_gflops": round(machine.matrix_flops / 1e9),
    }
    return Plan(not refusal, numbers, about, refusal)


def _count(facts: Facts) -> Numbers:
    """What there is before anything is decided."""
    adapt, shape = facts.recipe.adapt, facts.shape
    numbers = {
        "parameters": Derived(shape.parameters, "counted"),
        "trained_parameters": Derived(
            shape.trained,
            f"rank {adapt.rank} × (in + out) of every adapted layer"
            if isinstance(adapt, Lora)
            else f"the model's own weights that adapt.method = {adapt.method} lets learn",
        ),
        "rows": Derived(facts.rows.num_train, "training rows"),
        "row_tokens": Derived(facts.rows.tokens, "real tokens of the training rows"),
    }
    if shape.reading is not None:
        numbers["reading"] = Derived(*shape.reading)
    return numbers


def _refusal(numbers: Numbers, machine: Machine) -> str:
    need, have = numbers["memory_bytes"].value, machine.memory_bytes
    if need > have:
        return (
            f"training needs about {need / GIB:.1f} GiB and {have / GIB:.1f} GiB are free: choose "
            "a smaller base, train.max_length or adapt.method = lora"
        )
    disk = 4 * numbers["checkpoint_bytes"].value
    if disk > machine.disk_bytes:
        return (
            f"checkpoints need about {disk / GIB:.2f} GiB of disk and "
            f"{machine.disk_bytes / GIB:.2f} GiB are free"
        )
    return ""
