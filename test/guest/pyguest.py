"""pyguest [MIB]: a dict of many small and large values, digested by this process
and by a pool of four forked ones, whose reference counts write to every page
they share with it."""

import hashlib
import multiprocessing
import random
import sys

WORKERS = 4
SLICES = 16

values = {}


def fill(mib):
    """Keys in order, sizes from a few bytes to a few pages, half compressible."""
    rng = random.Random(1)
    remaining = mib << 20
    while remaining > 0:
        size = rng.choice((24, 200, 1000, 4000, 12000))
        if len(values) % 2:
            value = rng.randbytes(size)
        else:
            value = b"%016d" % len(values) * (size // 16 + 1)
        values["key-%d" % len(values)] = value
        remaining -= len(value) + 100  # what the objects and the table cost


def digest(part):
    sha = hashlib.sha256()
    for number in range(part, len(values), SLICES):
        key = "key-%d" % number
        sha.update(key.encode())
        sha.update(values[key])
    return sha.hexdigest()


def rewrite_and_digest(part):
    """A child changes its own copy; nobody else may see it."""
    before = digest(part)
    for number in range(part, len(values), SLICES):
        key = "key-%d" % number
        values[key] = values[key][::-1]
    changed = digest(part)
    for number in range(part, len(values), SLICES):
        key = "key-%d" % number
        values[key] = values[key][::-1]
    return before, changed, digest(part)


def main():
    fill(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    expected = [digest(part) for part in range(SLICES)]
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        results = pool.map(rewrite_and_digest, range(SLICES), chunksize=1)
    for part, (before, changed, after) in enumerate(results):
        if before != expected[part] or after != expected[part] or changed == before:
            sys.exit("FAIL: slice %d: a child read something else" % part)
    if [digest(part) for part in range(SLICES)] != expected:
        sys.exit("FAIL: the dict has changed under its owner")
    total = hashlib.sha256("".join(expected).encode()).hexdigest()
    print("pyguest: %d values right, digest %s" % (len(values), total[:16]))


if __name__ == "__main__":
    main()
