"""In which groups a round's gradients are added up where reducers do it, and when that is worth it; pure.

N gradients become ceil(N/k) means, those become fewer, until one is left. Groups are of neighbours, in the order of the
round, and of sizes that differ by one at most. The order of additions is part of the result's bits, so whoever adds
them up goes by this tree: reducers, a peer in whose execution reducing failed, and the service in a peer's own process.
"""

from __future__ import annotations

#: Means and gradients that one reducer adds up. It holds its mean and one of them, however many there are, so memory
#: sets no limit. With more the groups take longer, with fewer there are more levels, and more means that travel.
FAN_IN = 8
#: Levels at most: a definition has a state for each. 8 to the power of 3 is 512; beyond that groups are larger, 22 each
#: for 10,000 gradients.
MOST_LEVELS = 3

#: What a level costs beside its bytes, in bytes that could have travelled: a second (two states of the map, an
#: invocation, requests) on a line of half a gigabit per second, which a small instance has for long and a function too.
LEVEL_BYTES = 64 * 2**20
#: S3 takes an object at a quarter of the pace at which it gives one: 104 and 419 MiB/s for 16 MiB, measured locally.
PUT_WEIGHT = 4


def tree(count: int) -> tuple[tuple[int, ...], ...]:
    """The sizes of the groups, level by level; the last level is one group. Empty for fewer than two gradients."""
    fan_in = FAN_IN
    while fan_in**MOST_LEVELS < count:
        fan_in += 1
    levels = []
    while count > 1:
        groups = -(-count // fan_in)
        size, larger = divmod(count, groups)
        levels.append((size + 1,) * larger + (size,) * (groups - larger))
        count = groups
    return tuple(levels)


def reducers(count: int) -> int:
    """Invocations of the tree over `count` gradients."""
    return sum(len(level) for level in tree(count))


def reduces(setting: str, count: int, encoded_bytes: int, mean_bytes: int) -> bool:
    """Whether reducers add up a round of `count` gradients; `setting` is `compute.reduce`.

    A gradient has `encoded_bytes` as workers store it and `mean_bytes` as float32. `auto` compares what the peer would
    wait for: all gradients on its own line, or the slowest way through the tree, of which each level reads its largest
    group and writes a mean, and then one mean. Time is not looked at, so that the same run decides alike everywhere.
    """
    if setting == "never" or count < 2:
        return False
    if setting == "always":
        return True
    levels = tree(count)
    way = mean_bytes + len(levels) * (PUT_WEIGHT * mean_bytes + LEVEL_BYTES)
    way += levels[0][0] * encoded_bytes + sum(level[0] for level in levels[1:]) * mean_bytes
    return way < count * encoded_bytes


def ever_reduces(setting: str, most: int, encoded_bytes: int, mean_bytes: int) -> bool:
    """Whether that holds for any round of at most `most` gradients."""
    return any(reduces(setting, count, encoded_bytes, mean_bytes) for count in range(2, most + 1))
