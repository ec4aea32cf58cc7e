"""Leading eigenvectors found without the others, against the full decomposition."""

import numpy as np
import pytest
from spectra import dense, moment, projectors, ranks, rotation

from jaxunlearn.nullspace import partial_eigen
from jaxunlearn.nullspace.partial_eigen import leading_eigenpairs
from jaxunlearn.nullspace.rank_rules import Rule
from jaxunlearn.nullspace.subspace import subspaces

EPS32 = float(np.finfo(np.float32).eps)
D = 240
DECAYING = np.arange(1, D + 1.0) ** -2

RULES = {
    "rank": {"rank": 20},
    "share of directions": {"protected_fraction": 0.1},
    "energy": {"energy": 0.98},
    "relative size": {"rtol": 0.04},
}


def gram(spectrum, seed=0) -> np.ndarray:
    basis = rotation(np.random.default_rng(seed), len(spectrum))
    return (basis * spectrum) @ basis.T


@pytest.fixture(scope="module")
def decaying():
    return moment(DECAYING, dense(D))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_what_the_full_decomposition_keeps(name, decaying):
    matrix = np.asarray(decaying.gram[0], np.float64)
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    # In gaps of this size, an error of the gram's own rounding turns the basis.
    [rank] = ranks(subspaces(decaying, **RULES[name], solver="full"))
    turn = EPS32 * values[0] / (values[rank - 1] - values[rank])
    rule = Rule(*next(iter(RULES[name].items())))
    # That the full decomposition did not take over:
    assert leading_eigenpairs(np.asarray(decaying.gram[0]), rule, EPS32) is not None
    found = subspaces(decaying, **RULES[name], solver="partial")
    assert ranks(found) == [rank]
    difference = projectors(found.basis[0]) - projectors(vectors[:, :rank])
    assert np.linalg.norm(difference, 2) < turn + 10 * EPS32
    np.testing.assert_allclose(found.spectrum[0, :rank], values[:rank], rtol=1e-5)
    basis = np.asarray(found.basis[0], np.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=4 * EPS32)


def test_the_rest_of_the_spectrum_is_its_mean():
    values, vectors = leading_eigenpairs(gram(DECAYING), Rule("rank", 5), 1e-10)
    assert values.shape == (D,)
    assert vectors.shape == (D, 5)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values.sum(), DECAYING.sum(), rtol=1e-12)
    np.testing.assert_allclose(values[:5], DECAYING[:5], rtol=1e-8)
    assert values[-1] == values[-2] > DECAYING[-1]


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_a_float64_moment_is_resolved_to_its_own_rounding(power):
    spectrum = np.arange(1, D + 1.0) ** -power
    matrix = gram(spectrum)
    values, vectors = leading_eigenpairs(matrix, Rule("rank", 8), 2.3e-16)
    error = matrix @ vectors - vectors * values[:8]
    assert np.linalg.norm(error, axis=0).max() < 2 * D * 2.3e-16
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), atol=1e-12)


def test_energy_stops_at_the_basis_that_holds_it(monkeypatch):
    sizes = []
    pairs = partial_eigen._pairs

    def spy(basis):
        sizes.append(basis.columns.shape[1])
        return pairs(basis)

    monkeypatch.setattr(partial_eigen, "_pairs", spy)
    matrix = gram(2.0 ** -np.arange(D))
    _, vectors = leading_eigenpairs(matrix, Rule("energy", 0.9), EPS32)
    assert vectors.shape[1] == 4  # 1 - 2^-4 = .94
    assert len(sizes) == 1
    assert sizes[0] <= 0.1 * D


@pytest.mark.parametrize("copies", [30, 3])
def test_equal_eigenvalues_are_all_found(copies):
    # More of them than columns in a block, which a single start would never see.
    spectrum = np.concatenate([np.ones(copies), np.full(D - copies, 1e-3)])
    values, vectors = leading_eigenpairs(gram(spectrum), Rule("rtol", 0.3), 1e-9)
    assert vectors.shape[1] == copies
    np.testing.assert_allclose(values[:copies], 1, atol=1e-9)
    wanted = gram((spectrum == 1).astype(float))
    np.testing.assert_allclose(projectors(vectors), wanted, atol=1e-6)


def test_a_moment_of_low_rank_is_exhausted():
    spectrum = np.where(np.arange(D) < 7, 1.0, 0)
    values, vectors = leading_eigenpairs(gram(spectrum), Rule("energy", 1.0), 1e-12)
    assert vectors.shape[1] == 7
    np.testing.assert_allclose(values[7:], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("spectrum", "rule"),
    [
        (np.ones(D), {"energy": 0.9}),
        (DECAYING, {"rank": D // 2}),
        (DECAYING, {"protected_fraction": 1}),
        (np.zeros(D), {"energy": 0.9}),
    ],
)
def test_where_the_rank_is_large_the_full_decomposition_takes_over(spectrum, rule):
    record = moment(spectrum, dense(D))
    [(name, value)] = rule.items()
    assert (
        leading_eigenpairs(np.asarray(record.gram[0]), Rule(name, value), 1e-7) is None
    )
    full, partial = (subspaces(record, **rule, solver=s) for s in ("full", "partial"))
    np.testing.assert_array_equal(full.basis, partial.basis)
    np.testing.assert_array_equal(full.spectrum, partial.spectrum)


def test_auto_is_partial_for_large_layers_alone(monkeypatch, decaying):
    full, partial = (
        subspaces(decaying, rank=9, solver=solver).spectrum
        for solver in ("full", "partial")
    )
    np.testing.assert_array_equal(subspaces(decaying, rank=9).spectrum, full)
    monkeypatch.setattr("jaxunlearn.nullspace.subspace.FULL_UP_TO", D - 1)
    np.testing.assert_array_equal(subspaces(decaying, rank=9).spectrum, partial)
    assert not np.array_equal(full, partial)
    with pytest.raises(ValueError, match='solver must be "auto", "full" or "partial"'):
        subspaces(decaying, rank=9, solver="lanczos")


def test_ranks_from_leading_eigenvalues_are_those_from_all_or_unknown():
    rng = np.random.default_rng(0)
    rules = [Rule("energy", e) for e in (0.3, 0.9, 0.999, 1.0)]
    rules += [Rule("rtol", r) for r in (0.5, 0.01)] + [Rule("rank", 4)]
    known = 0
    for _ in range(40):
        spectrum = np.sort(10.0 ** rng.uniform(-9, 0, size=12))[::-1]
        for rule in rules:
            full = rule.rank(spectrum, EPS32)
            for found in range(1, 13):
                rest = spectrum[found:].sum()
                rank = rule.rank_of_leading(spectrum[:found], rest, 12, EPS32)
                assert rank is None or rank == full <= found
                known += rank is not None
            assert rank == full
    assert known > 1000
