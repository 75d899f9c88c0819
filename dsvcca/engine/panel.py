"""The bases of one panel on a worker: small parts in memory, columns read step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from dsvcca.maths.arrays import Array, NumpyArray, inverse_cholesky, put, to_numpy
from dsvcca.maths.basis import Basis, Block, RankRule, lumps_of, ranks_of
from dsvcca.maths.mixing import BLOCK, unmix
from dsvcca.maths.moments import grid_steps
from dsvcca.maths.resampling import Halves, Parts
from dsvcca.maths.sums import shrinkage_of
from dsvcca.maths.views import GRID
from dsvcca.plans.sizes import block_bytes, padded
from dsvcca.workspace.packs import BasisRef, Pack

RUN = 1024
"""Columns of which norms of rows are taken together."""

ROWS = 16
"""Products run over so many rows or more: for fewer BLAS has other routines."""


FINE, COARSE = 4, 8
"""Ranks are filled up to a multiple of this: below 64, and from there on."""


def fitted(ranks: NumpyArray) -> NumpyArray:
    """Return the sizes to which cross blocks of some ranks are filled up.

    >>> fitted(np.array([1, 4, 29, 64, 65])).tolist()
    [4, 4, 32, 64, 72]
    """
    return np.where(ranks <= 64, -(-ranks // FINE) * FINE, -(-ranks // COARSE) * COARSE)


@dataclass
class ForSolves:
    """What a run of bases brings to the solves of one frequency.

    Attributes
    ----------
    blocks : sequence of Block
        Cut to the directions that some rule keeps.
    singular_values : sequence of (k,) arrays, NumPy
        Over the largest of all frequencies.
    shrinkage : sequence of (ridges, k) arrays, NumPy
        See `sums.shrinkage_of`.
    parts : sequence of Parts
        Of columns by folds of the rows, where they are wanted.
    weight : int
        Real columns of a direction.
    """

    blocks: Sequence[Block]
    singular_values: Sequence[NumpyArray] = ()
    shrinkage: Sequence[NumpyArray] = ()
    parts: Sequence[Parts] = ()
    weight: int = 1
    _halves: dict[tuple[int, int, int], Halves] = field(default_factory=dict)
    _parts: dict[tuple[int, int, int], tuple[Array, Array]] = field(default_factory=dict)
    _loadings: dict[tuple[int, int, int], Array] = field(default_factory=dict)
    _stacks: dict[int, tuple[Array, Array, NumpyArray]] = field(default_factory=dict)

    def stacks(self, size: int) -> tuple[Array, Array, NumpyArray]:
        """Return L^-1 (b, size, size) and column sums (b, size) of the bases of a size, and where each basis stands.

        Beyond their ranks they are of ones and zeros.
        """
        if size not in self._stacks:
            fitting = [i for i, block in enumerate(self.blocks) if fitted(np.asarray(len(block.column_sums))) == size]
            dtype = np.result_type(np.float64, *(to_numpy(self.blocks[i].column_sums).dtype for i in fitting))
            cholesky = np.zeros((len(fitting), size, size), dtype=dtype)
            cholesky += np.eye(size)
            sums = np.zeros((len(fitting), size), dtype=dtype)
            places = np.full(len(self.blocks), -1)
            for place, i in enumerate(fitting):
                k = len(self.blocks[i].column_sums)
                cholesky[place, :k, :k], sums[place, :k] = self.blocks[i].cholesky, self.blocks[i].column_sums
                places[i] = place
            self._stacks[size] = put(inverse_cholesky(cholesky)), put(sums), places
        return self._stacks[size]

    def scales(self, members: NumpyArray, ranks: NumpyArray, size: int) -> NumpyArray:
        """Return singular values (pairs, size) of some bases, over their largest; zero from their ranks on."""
        found = np.zeros((len(members), size))
        for row, i, k in zip(found, members.tolist(), ranks.tolist(), strict=True):
            row[:k] = self.singular_values[i][:k]
        return found

    def shrunk(self, members: NumpyArray, ranks: NumpyArray, size: int) -> NumpyArray:
        """Return by how much directions of some bases are shrunk, (ridges, pairs, size); zero from their ranks on."""
        found = np.zeros((len(self.shrinkage[0]), len(members), size))
        for place, (i, k) in enumerate(zip(members.tolist(), ranks.tolist(), strict=True)):
            found[:, place, :k] = self.shrinkage[i][:, :k]
        return found

    def parts_of(self, i: int, k: int, size: int) -> tuple[Array, Array]:
        """Return Grams and sums of the first k directions of a basis by folds; zero from k on."""
        if (i, k, size) not in self._parts:
            self._parts[i, k, size] = self.parts[i].of(k, self.weight, size)
        return self._parts[i, k, size]

    def halves_of(self, i: int, k: int, size: int, rows: NumpyArray) -> Halves:
        """Return what even and odd folds say of the first k directions of a basis; `rows` are in each."""
        if (i, k, size) not in self._halves:
            self._halves[i, k, size] = Halves(*self.parts_of(i, k, size), k, rows)
        return self._halves[i, k, size]

    def loadings(self, i: int, k: int, size: int) -> Array:
        """Return F (size, c) of the first k directions of a basis, as if no others had been kept; zero from k on."""
        if (i, k, size) not in self._loadings:
            found = to_numpy(self.blocks[i].cut(k).loadings)
            self._loadings[i, k, size] = put(np.concatenate([found, np.zeros((size - k, found.shape[1]))]))
        return self._loadings[i, k, size]


class Panel:
    """The bases of one side of a tile that share their rows and frequencies.

    Attributes
    ----------
    refs : tuple of BasisRef
    ranks : (b, rules, f) int
        The directions each rule keeps.
    most : (b, f) int
        Those that some rule keeps.
    widths : (b, f) int
        Their real columns: two for a complex one.
    weights : (f,) int
    most_kept : (b,) int
        Those, over all frequencies.
    lumps : (b,) float
        See `basis.lumps_of`.
    scales : (b,) float
        Largest singular value of each.
    powers : (2, b) float
        Sums of squares, and of fourth powers, of all singular values over the largest, over all frequencies.
    kept_powers : (2, b, rules) float
        The same of the directions that each rule keeps.
    shrunk4 : (b, rules, ridges) float
        Sums of fourth powers of what they are shrunk by, over all frequencies.
    condition : float
        Largest singular value over the smallest of a direction that some rule keeps, of the worst basis.
    seeds : list of str
        Of what each was made, whatever rule cuts it.
    keys : list of str
        Order bases by what they hold: every pair is solved in an order of its two sides that does not depend on which
        of them came first.
    """

    def __init__(
        self, workspace: str, refs: tuple[BasisRef, ...], rules: tuple[RankRule, ...], ridges: Sequence[float] = ()
    ) -> None:
        self.refs = refs
        self.packs = {name: Pack(workspace, name) for name in dict.fromkeys(ref.pack for ref in refs)}
        kept: list[tuple[NumpyArray, ...]] = []
        conditions: list[float] = []
        lumps: list[float] = []
        self._spectra: list[NumpyArray] = []
        scales: list[float] = []
        powers: list[list[float]] = []
        seeds: list[str] = []
        kept_powers: tuple[list[list[float]], ...] = ([], [])
        shrunk4: list[list[list[float]]] = []
        self._shrinkage: list[NumpyArray] = []
        self.neurons: list[int] = []
        for ref in refs:
            basis = self.packs[ref.pack].basis(ref.position)
            self.weights = basis.weights
            kept.append(ranks_of(rules, basis.weights, basis.singular_values, basis.nonzero))
            self.neurons.append(len(basis.neuron_norms))
            conditions.append(_condition(kept[-1], basis.singular_values))
            lumps.append(lumps_of(basis.row_norms))
            scales.append(float(basis.singular_values.max()))
            self._spectra.append(basis.singular_values / scales[-1])
            powers.append([float(basis.weights @ np.sum(self._spectra[-1] ** power, axis=1)) for power in (2, 4)])
            seeds.append(_digest(basis))
            self._shrinkage.append(shrinkage_of(self._spectra[-1], powers[-1][0], basis.nonzero, ridges))
            firsts = [np.arange(basis.singular_values.shape[1]) < ranks[:, None] for ranks in kept[-1]]
            for found, power in zip(kept_powers, (2, 4), strict=True):
                found.append([_over(basis.weights, self._spectra[-1] ** power, own) for own in firsts])
            shrunk4.append([[_over(basis.weights, one**4, own) for one in self._shrinkage[-1]] for own in firsts])
        self.keys = [self.packs[ref.pack].key(ref.position) for ref in refs]
        self.ranks: NumpyArray = np.asarray(kept)
        self.most: NumpyArray = self.ranks.max(axis=1)
        self.widths: NumpyArray = self.most * self.weights
        self.condition = max(conditions)
        self.lumps: NumpyArray = np.asarray(lumps)
        self.scales: NumpyArray = np.asarray(scales)
        self.powers: NumpyArray = np.asarray(powers).T
        self.seeds = seeds
        self.kept_powers: NumpyArray = np.asarray(kept_powers)
        self.shrunk4: NumpyArray = np.asarray(shrunk4)
        self.most_kept: NumpyArray = np.sum(self.most * self.weights, axis=1)
        self._at: tuple[tuple[int, range], ForSolves] = ((-1, range(0)), ForSolves(()))

    @property
    def is_joint(self) -> bool:
        """Whether cross blocks are stored, and no columns."""
        return any(pack.pairs is not None for pack in self.packs.values())

    def joint_cross(self, f: int, i: int, other: Panel, j: int) -> NumpyArray:
        """Return the stored cross block (k_i, k_j) of basis i of this panel and basis j of another."""
        one, two = self.refs[i], other.refs[j]
        block = self.packs[one.pack].cross(f, one.position, two.position)
        return block[: int(self.most[i, f]), : int(other.most[j, f])]

    @property
    def bytes_a_column(self) -> float:
        """Bytes of what belongs to one real column at the frequency where that is most."""
        worst = 0.0
        for most, c in zip(self.most, self.neurons, strict=True):
            at = int(most.argmax())
            k, weight = int(most[at]), int(self.weights[at])
            worst = max(worst, block_bytes(k, c, weight) / max(1, k * weight))
        return worst

    def ends(self, run: range, f: int) -> NumpyArray:
        """Return where the real columns of each basis of a run begin at one frequency; after all of them the end."""
        return np.cumsum([0, *self.widths[run.start : run.stop, f].tolist()])

    def at(self, f: int, run: range) -> ForSolves:
        """Return what a run of bases brings to the solves of one frequency; of the last one asked for it is kept."""
        if self._at[0] != (f, run):
            stored = (self.packs[self.refs[i].pack].block(self.refs[i].position, f) for i in run)
            blocks = [block.cut(int(self.most[i, f])) for i, block in zip(run, stored, strict=True)]
            spectra, shrinkage = [self._spectra[i][f] for i in run], [self._shrinkage[i][:, f] for i in run]
            self._at = (f, run), ForSolves(blocks, spectra, shrinkage)
        return self._at[1]

    def kept_norms(self, rows: int) -> Iterator[NumpyArray]:
        """Yield squared norms of centred rows, what each rule keeps of them, (rules, b, rows of a step of the grid).

        Of bases of one frequency, in units of the largest singular value of each.
        """
        runs = list(self.runs(0, RUN))
        height = max(min(rows, GRID), ROWS)
        scales = []
        for run in runs:
            scales.append(np.zeros(padded(int(self.ends(run, 0)[-1])), dtype=np.float32))
            for i, start in zip(run, self.ends(run, 0).tolist(), strict=False):
                scales[-1][start : start + int(self.most[i, 0])] = self._spectra[i][0, : int(self.most[i, 0])]
        slab = np.empty((height, max(map(len, scales))), dtype=np.float32)  # one at a time: no plan counts on more
        for step in grid_steps(rows):
            count = step.stop - step.start
            found = np.zeros((self.ranks.shape[1], len(self.refs), count))
            for run, scale in zip(runs, scales, strict=True):
                [u] = self.fill(slab, step, run, range(1))
                squared = unmix(u[:count], step.start)
                squared *= scale
                squared *= squared
                starts = self.ends(run, 0)[:-1]
                for rule in range(len(found)):
                    ends = np.stack([starts, starts + self.ranks[run.start : run.stop, rule, 0]], axis=1).ravel()
                    found[rule, run.start : run.stop] = np.add.reduceat(squared, ends, axis=1)[:, ::2].T
            yield found

    def runs(self, f: int, most: int) -> Iterator[range]:
        """Cut the panel into runs of at most `most` columns at one frequency (or one basis)."""
        start = total = 0
        for i, width in enumerate(self.widths[:, f].tolist()):
            if i > start and total + width > most:
                yield range(start, i)
                start, total = i, 0
            total += width
        yield range(start, len(self.refs))

    def slabs(self, run: range, frequencies: range, height: int) -> list[NumpyArray]:
        """Return two arrays of so many rows that `fill` can use in turn."""
        widths = self.widths[run.start : run.stop, frequencies.start : frequencies.stop].sum(axis=0).tolist()
        return [np.empty((height, sum(map(padded, widths))), dtype=np.float32) for _ in range(2)]

    def fill(self, slab: NumpyArray, step: slice, run: range, frequencies: range) -> list[NumpyArray]:
        """Write the columns of a run of bases for one step of the grid into `slab`, and return those of each frequency.

        Rows up to `ROWS`, and columns up to a multiple of `SHAPE`, are zero where no basis is.
        """
        rows = step.stop - step.start
        slab = slab[: max(rows, ROWS)]
        slab[rows:] = 0
        found = []
        targets: dict[str, list[tuple[int, slice]]] = {}
        start = 0
        for f in frequencies:
            ends = start + self.ends(run, f)
            stop = start + padded(int(ends[-1]) - start)
            slab[:, ends[-1] : stop] = 0
            for place, i in zip(ends.tolist(), run, strict=False):
                first = self.packs[self.refs[i].pack].place(self.refs[i].position, f).start
                kept = slice(first, first + int(self.widths[i, f]))
                if kept.stop > kept.start:
                    targets.setdefault(self.refs[i].pack, []).append((place, kept))
            found.append(slab[:, start:stop])
            start = stop
        for name, wanted in targets.items():
            every = slice(min(kept.start for _, kept in wanted), max(kept.stop for _, kept in wanted))
            for rows_read, there, read in self.packs[name].columns(step, every):
                for place, kept in wanted:
                    begin, end = max(kept.start, there.start), min(kept.stop, there.stop)
                    if begin < end:
                        target = slice(place + begin - kept.start, place + end - kept.start)
                        slab[rows_read, target] = read[:, begin - there.start : end - there.start]
        return found

    def fill_shuffled(
        self, slab: NumpyArray, step: slice, run: range, frequencies: range, rows: int, shuffled: Shuffled
    ) -> list[NumpyArray]:
        """Do as `fill`, but with datapoints of each basis in an order of its own; `rows` are all there are."""
        read = slice(step.start // BLOCK * BLOCK, min(-(-step.stop // BLOCK) * BLOCK, rows))  # mixed with no others
        found = self.fill(slab, read, run, frequencies)
        count = step.stop - step.start
        for f, columns in zip(frequencies, found, strict=True):
            for i, start, stop in zip(run, self.ends(run, f), self.ends(run, f)[1:], strict=False):
                own = columns[: read.stop - read.start, start:stop]
                columns[:count, start:stop] = shuffled.apply(own, self.seeds[i], step, read)
            columns[count:] = 0
        return [columns[: max(count, ROWS)] for columns in found]


def _digest(basis: Basis) -> str:
    """Return a digest of what does not follow the rule by which a basis was cut."""
    parts = (basis.mean, basis.neuron_norms, basis.row_norms)
    return hashlib.blake2b(b"".join(to_numpy(part).tobytes() for part in parts), digest_size=16).hexdigest()


def _over(weights: NumpyArray, values: NumpyArray, own: NumpyArray) -> float:
    """Return the sum of some values (f, c), each frequency times its weight."""
    return float(weights @ np.sum(np.where(own, values, 0.0), axis=1))


def _condition(ranks: Sequence[NumpyArray], singular_values: NumpyArray) -> float:
    """Return the largest singular value over the smallest of those that some rule keeps."""
    deepest = np.max(ranks, axis=0)
    some = np.flatnonzero(deepest)
    return float(singular_values.max() / singular_values[some, deepest[some] - 1].min()) if some.size else 1.0


@dataclass(frozen=True)
class Shuffled:
    """Datapoints in an order of its own for every basis, by what it holds: those of one step of rows change places.

    Attributes
    ----------
    unit : int
        Rows of a datapoint, which stay together.
    draw : int
        Which of several orders.
    """

    unit: int
    draw: int

    def steps(self, rows: int) -> list[slice]:
        """Return steps of whole datapoints."""
        return list(grid_steps(rows, GRID // self.unit * self.unit))

    def apply(self, columns: NumpyArray, seed: str, step: slice, read: slice) -> NumpyArray:
        """Return the rows of a step in the order of a basis; they lie mixed in those that were read."""
        rng = np.random.default_rng([int(seed, 16), step.start, self.draw])
        datapoints = rng.permutation((step.stop - step.start) // self.unit)
        order = (datapoints[:, None] * self.unit + np.arange(self.unit)).ravel()
        found: NumpyArray = unmix(columns, read.start)[order + step.start - read.start]
        return found


def read_slabs(
    x: Panel,
    x_run: range,
    y: Panel,
    y_run: range,
    frequencies: range,
    rows: int,
    shuffled: Shuffled | None = None,
) -> Iterator[tuple[slice, list[Array], list[Array]]]:
    """Yield (step, columns, columns) of two runs for every step of the grid; the next is read meanwhile.

    The last step comes first. Slabs are used again, every other step: they hold their numbers until the next one is
    asked for. They are on the device of the worker, where each goes in one transfer.
    """
    itself = x is y and x_run == y_run
    height = max(min(rows, GRID if shuffled is None else GRID + 2 * BLOCK), ROWS)
    y_slabs = y.slabs(y_run, frequencies, height)
    x_slabs = y_slabs if itself else x.slabs(x_run, frequencies, height)

    def filled(panel: Panel, slab: NumpyArray, step: slice, run: range) -> list[NumpyArray]:
        if shuffled is None:
            return panel.fill(slab, step, run, frequencies)
        return panel.fill_shuffled(slab, step, run, frequencies, rows, shuffled)

    def read(step: slice, place: int) -> tuple[list[NumpyArray], list[NumpyArray]]:
        u_y = filled(y, y_slabs[place % 2], step, y_run)
        return (u_y if itself else filled(x, x_slabs[place % 2], step, x_run)), u_y

    *whole, shortest = grid_steps(rows) if shuffled is None else shuffled.steps(rows)
    steps = [shortest, *whole]  # nothing is multiplied while the first is read
    with ThreadPoolExecutor(1, "dsvcca-io") as io:
        ahead = io.submit(read, steps[0], 0)
        for place in range(1, len(steps) + 1):
            u_x, u_y = ahead.result()
            if place < len(steps):
                ahead = io.submit(read, steps[place], place)
            on_device = [put(u) for u in u_y]
            yield steps[place - 1], (on_device if itself else [put(u) for u in u_x]), on_device
