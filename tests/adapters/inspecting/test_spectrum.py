"""Spectra and similarities of matrices, against torch's own decompositions and the definitions."""

import math

import pytest
import torch
from torch import Tensor

from server.adapters.inspecting.spectrum import (
    chance_similarity,
    cosine,
    spectrum_of_matrix,
    spectrum_of_product,
    subspace_similarity,
)

SHAPES = [(1, 1, 1), (7, 5, 3), (5, 7, 3), (6, 4, 9), (4, 6, 9), (30, 20, 8)]  # out, in, rank


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestSpectrum:
    @pytest.mark.parametrize(("out_features", "in_features", "rank"), SHAPES)
    def test_of_a_product_as_of_the_matrix(
        self, out_features: int, in_features: int, rank: int
    ) -> None:
        p, q = drawn(out_features, rank), drawn(rank, in_features, seed=1)
        for found in (
            spectrum_of_product(p, q),
            spectrum_of_product(p, q, spaces=True),
            spectrum_of_matrix(p @ q, spaces=True),
        ):
            values = torch.linalg.svdvals(p @ q)
            torch.testing.assert_close(found.values, values[: len(found.values)])
            assert values[len(found.values) :].sum() < 1e-9
            assert found.norm == pytest.approx(float(torch.linalg.matrix_norm(p @ q)))
            assert found.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(p @ q, 2)))
            assert found.numerical_rank == int(torch.linalg.matrix_rank(p @ q))

    @pytest.mark.parametrize(("out_features", "in_features", "rank"), SHAPES)
    def test_its_spaces_make_the_matrix(
        self, out_features: int, in_features: int, rank: int
    ) -> None:
        p, q = drawn(out_features, rank), drawn(rank, in_features, seed=1)
        for found in (
            spectrum_of_product(p, q, spaces=True),
            spectrum_of_matrix(p @ q, spaces=True),
        ):
            assert found.left is not None and found.right is not None
            torch.testing.assert_close(found.left * found.values @ found.right.t(), p @ q)
            for space in (found.left_space(99), found.right_space(99)):
                torch.testing.assert_close(
                    space.t() @ space, torch.eye(found.numerical_rank, dtype=torch.float64)
                )

    def test_directions_without_weight_are_left_out(self) -> None:
        p, q = drawn(9, 5), drawn(5, 8, seed=1)
        q[3] = 0  # as a zero in VeRA's d
        p[:, 4] = p[:, 0]
        found = spectrum_of_product(p, q, spaces=True)
        assert found.numerical_rank == int(torch.linalg.matrix_rank(p @ q)) == 3
        assert found.left_space(64).shape == (9, 3)

    def test_known_ranks(self) -> None:
        equal = spectrum_of_matrix(torch.eye(6))
        assert [equal.stable_rank, equal.effective_rank] == pytest.approx([6, 6])
        skewed = spectrum_of_matrix(torch.diag(torch.tensor([3.0, 1.0])))
        assert skewed.stable_rank == pytest.approx(10 / 9)
        shares = (0.75, 0.25)
        entropy = -sum(share * math.log(share) for share in shares)
        assert skewed.effective_rank == pytest.approx(math.exp(entropy))

    def test_no_update(self) -> None:
        found = spectrum_of_product(torch.zeros(5, 2), drawn(2, 4), spaces=True)
        assert (found.norm, found.spectral_norm, found.stable_rank) == (0, 0, 0)
        assert (found.numerical_rank, found.effective_rank) == (0, 0)
        assert found.left_space(64).shape == (5, 0)
        assert cosine(found, found) is None

    def test_spaces_that_were_not_computed_are_refused(self) -> None:
        found = spectrum_of_matrix(drawn(3, 2))
        with pytest.raises(ValueError, match="has no spaces"):
            found.left_space(1)
        with pytest.raises(ValueError, match="has no spaces"):
            cosine(found, found)


def orthonormal(matrix: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(matrix).Q
    return q


class TestSimilarity:
    def test_it_is_the_mean_squared_canonical_correlation(self) -> None:
        """By the definition: correlations of the directions that correlate best, one by one."""
        x, y = drawn(12, 3), drawn(12, 5, seed=1)
        whiten = [torch.linalg.inv(torch.linalg.cholesky(m.t() @ m)) for m in (x, y)]
        correlations = torch.linalg.svdvals(whiten[0] @ x.t() @ y @ whiten[1].t())
        expected = float(correlations.square().mean())
        found = subspace_similarity(orthonormal(x), orthonormal(y))
        assert found == pytest.approx(expected)
        assert subspace_similarity(orthonormal(y), orthonormal(x)) == pytest.approx(expected)

    def test_its_ends(self) -> None:
        x = orthonormal(drawn(10, 6))
        mixed = orthonormal(x[:, :4] @ drawn(4, 4, seed=1))  # the same space: B C for B
        assert subspace_similarity(x[:, :4], mixed) == pytest.approx(1)
        assert subspace_similarity(x, mixed) == pytest.approx(1)
        assert subspace_similarity(x[:, :4], x[:, 4:]) == pytest.approx(0)
        assert subspace_similarity(x, x[:, :0]) is None

    def test_random_spaces_meet_by_chance(self) -> None:
        found = [
            subspace_similarity(
                orthonormal(drawn(40, 4, seed=n)), orthonormal(drawn(40, 10, seed=-n))
            )
            for n in range(1, 101)
        ]
        mean = sum(value for value in found if value is not None) / len(found)
        assert mean == pytest.approx(chance_similarity(40, 4, 10), rel=0.1)

    @pytest.mark.parametrize(("out_features", "in_features", "rank"), SHAPES)
    def test_the_cosine_of_two_updates(
        self, out_features: int, in_features: int, rank: int
    ) -> None:
        p, q = drawn(out_features, rank), drawn(rank, in_features, seed=1)
        full = drawn(out_features, in_features, seed=2)
        found = cosine(
            spectrum_of_product(p, q, spaces=True), spectrum_of_matrix(full, spaces=True)
        )
        expected = torch.cosine_similarity((p @ q).flatten(), full.flatten(), dim=0)
        assert found == pytest.approx(float(expected))
