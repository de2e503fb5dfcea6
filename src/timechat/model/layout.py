"""How many rows lie in one flat sequence: segments, and an opening that they share.

A shared prefix is computed once and attended to by all of its segments: exact, since a prefix never
looks ahead. What is done with the cut is `attention`'s and `paths`' business.

Axes: T flat tokens, N segments, L longest segment of a group, P prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A group of segments is padded to its longest; past this share of padding a new group is opened.
MAX_PADDING = 0.25


@dataclass(frozen=True, slots=True)
class Group:
    """Segments of similar length. `index` (N*L,) reads flat tokens into rows, `inverse` (n,) reads
    the rows' real tokens back, `where` (n,) holds those tokens' flat places. `prefix` is the number
    of shared tokens that its segments see."""

    prefix: int
    num_segments: int
    length: int
    index: Tensor
    inverse: Tensor
    where: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The cut of a flat sequence: an optional shared prefix first, then the segments."""

    prefix: int
    groups: tuple[Group, ...]
    order: Tensor
    positions: Tensor


def plan_layout(lengths: Sequence[int], prefix: int = 0, num_alone: int = 0) -> Layout:
    """The layout of a flat sequence of `prefix` tokens followed by segments of `lengths`.

    The last `num_alone` segments do not see the prefix and begin at position 0.
    """
    starts = [prefix]
    for length in lengths:
        starts.append(starts[-1] + length)
    num_sharing = len(lengths) - num_alone
    kinds = ((range(num_sharing), prefix), (range(num_sharing, len(lengths)), 0))
    if not prefix:
        kinds = ((range(len(lengths)), 0),)
    groups = tuple(
        _group([(starts[i], lengths[i]) for i in members], seen)
        for segments, seen in kinds
        for members in _similar(sorted(segments, key=lambda i: lengths[i]), lengths)
    )
    place = torch.empty(starts[-1], dtype=torch.long)
    where = torch.cat([torch.arange(prefix), *(group.where for group in groups)])
    place[where] = torch.arange(len(where))
    positions = [torch.arange(prefix)]
    for i, length in enumerate(lengths):
        first = prefix if i < num_sharing else 0
        positions.append(torch.arange(first, first + length))
    return Layout(prefix, groups, place, torch.cat(positions))


def _similar(ranked: list[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Runs of the ranked segments whose padding stays below MAX_PADDING."""
    members: list[int] = []
    total = 0
    for i in ranked:
        padded = lengths[i] * (len(members) + 1)
        if len(members) > 3 and padded - total - lengths[i] > MAX_PADDING * padded:
            yield members
            members, total = [], 0
        members.append(i)
        total += lengths[i]
    if members:
        yield members


def _group(spans: list[tuple[int, int]], prefix: int) -> Group:
    longest = max(length for _, length in spans)
    index = torch.zeros(len(spans), longest, dtype=torch.long)
    inverse: list[Tensor] = []
    where: list[Tensor] = []
    for row, (start, length) in enumerate(spans):
        # Padding repeats the segment's own first token: its output is never read.
        index[row] = start
        index[row, :length] = torch.arange(start, start + length)
        inverse.append(torch.arange(row * longest, row * longest + length))
        where.append(torch.arange(start, start + length))
    return Group(prefix, len(spans), longest, index.flatten(), torch.cat(inverse), torch.cat(where))
