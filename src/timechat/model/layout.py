"""How many rows lie in one flat sequence: segments, and an opening that they share.

A shared prefix is computed once and attended to by all of its segments: exact, since a prefix never
looks ahead. A segment may fork: what stands before the fork is seen by all of its branches, and no
branch sees another. What is done with the cut is `attention`'s and `paths`' business.

Axes: T flat tokens, N segments, L longest segment of a group, P prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# A group of segments is padded to its longest; past this share of padding a new group is opened.
MAX_PADDING = 0.25


@dataclass(frozen=True, slots=True)
class Group:
    """Segments of similar length. `index` (N*L,) reads flat tokens into rows, `inverse` (n,) reads
    the rows' real tokens back, `where` (n,) holds those tokens' flat places. `prefix` is the number
    of shared tokens that its segments see. Where segments fork, `branches` (N, L) numbers each
    token's branch (0 before the fork, -1 padding) and `places` (N, L) says where it stands in its
    row; both are None else."""

    prefix: int
    num_segments: int
    length: int
    index: Tensor
    inverse: Tensor
    where: Tensor
    branches: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The cut of a flat sequence: an optional shared prefix first, then the segments."""

    prefix: int
    groups: tuple[Group, ...]
    order: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """The way from the flat sequence to rows side by side, and back.

    The rows are the prefix and then each group's segments with their padding, one after the other,
    `sizes` long. `spread` (M,) reads flat tokens into them, `home` (T,) reads them back, `padding`
    (k,) says which of them no flat token is read from.
    """

    sizes: tuple[int, ...]
    spread: Tensor
    home: Tensor
    padding: Tensor


def find_places(layout: Layout, device: torch.device) -> Places:
    """The places of `layout`, on `device`."""
    opening = torch.arange(layout.prefix)
    home = torch.empty(len(layout.order), dtype=torch.long)
    home[: layout.prefix] = opening
    sizes = [layout.prefix]
    for group in layout.groups:
        home[group.where] = group.inverse + sum(sizes)
        sizes.append(len(group.index))
    is_padding = torch.ones(sum(sizes), dtype=torch.bool)
    is_padding[home] = False
    spread = torch.cat([opening, *(group.index for group in layout.groups)])
    padding = is_padding.nonzero()[:, 0]
    return Places(tuple(sizes), spread.to(device), home.to(device), padding.to(device))


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


def plan_forks(forks: Sequence[Sequence[int]], prefix: int = 0) -> Layout:
    """The layout of `prefix` tokens and segments that fork: for each the tokens before its fork,
    then those of every branch. Every branch goes on where the fork is.

    Only `paths.Path.PACKED` reads it.
    """
    plain = plan_layout([sum(parts) for parts in forks], prefix)
    numbers: list[Tensor] = [torch.zeros(prefix, dtype=torch.long)]
    positions: list[Tensor] = [torch.arange(prefix)]
    for trunk, *branches in forks:
        numbers.append(torch.zeros(trunk, dtype=torch.long))
        positions.append(torch.arange(prefix, prefix + trunk))
        for number, length in enumerate(branches, start=1):
            numbers.append(torch.full((length,), number))
            positions.append(torch.arange(prefix + trunk, prefix + trunk + length))
    number, position = torch.cat(numbers), torch.cat(positions)
    groups = tuple(_forked(group, number, position) for group in plain.groups)
    return replace(plain, groups=groups, positions=position)


def _forked(group: Group, number: Tensor, position: Tensor) -> Group:
    shape = (group.num_segments, group.length)
    branches = torch.full((group.num_segments * group.length,), -1)
    branches[group.inverse] = number[group.where]
    places = position[group.index].view(shape)
    return replace(group, branches=branches.view(shape), places=places)


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
