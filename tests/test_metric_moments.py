"""Means and covariances: exact, whatever the batches, their order and their division among processes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from diffusion_lab.metric import FeatureMoments, Moments, frechet_distance, moments


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


class TestFeatureMoments:
    def test_covariance_is_unbiased(self):
        x = normal(7, 3)
        result = moments(x)
        assert result.count == 7
        torch.testing.assert_close(result.covariance, torch.from_numpy(np.cov(x.numpy().T)), rtol=0, atol=1e-14)

    def test_streaming_equals_batch_though_the_mean_is_large(self):
        # Spread 1 around 1e6: sums of squares that are not shifted keep only four digits of this covariance.
        x = normal(1000, 8) + 1e6
        running = FeatureMoments()
        for part in x.split([1, 499, 0, 300, 200]):
            running.update(part)
        result, exact = running.result(), torch.cov((x - 1e6).T)
        torch.testing.assert_close(result.mean, x.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(result.covariance, exact, rtol=0, atol=1e-9)
        torch.testing.assert_close(moments(x).covariance, exact, rtol=0, atol=1e-9)

    def test_two_merged_accumulators_are_one(self):
        x = normal(300, 5).float()
        whole, left, right = FeatureMoments(), FeatureMoments(), FeatureMoments()
        for part in x.split(50):
            whole.update(part)
        left.update(x[:70])
        right.update(x[70:])
        right = pickle.loads(pickle.dumps(right))  # as it is sent between processes
        left.merge(FeatureMoments())
        merged = FeatureMoments()
        merged.merge(left)
        merged.merge(right)
        assert merged.count == whole.count == 300
        torch.testing.assert_close(merged.result().mean, whole.result().mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(merged.result().covariance, whole.result().covariance, rtol=0, atol=1e-14)

    def test_memory_does_not_grow_with_samples(self):
        running = FeatureMoments()
        for _ in range(3):
            running.update(normal(100, 4))
        assert len(pickle.dumps(running)) < 2000

    @pytest.mark.parametrize("count", [7, 8, 9, 50])
    def test_neither_order_nor_ranks_change_anything(self, count):
        # D = 8: rows are kept up to 8 samples, folded from 9 on.
        x, reference = normal(count, 8) + 100, moments(normal(30, 8, seed=1) + 100)
        whole = moments(x)
        for world in (1, 2, 3):
            for order in (range(world), reversed(range(world))):
                ranks = [FeatureMoments() for _ in range(world)]
                for k, part in enumerate(x.split(3)):
                    ranks[k % world].update(part)
                merged = FeatureMoments()
                for rank in order:
                    merged.merge(pickle.loads(pickle.dumps(ranks[rank])))
                result = merged.result()
                assert merged.count == result.count == count
                torch.testing.assert_close(result.mean, x.mean(0), rtol=0, atol=1e-12)
                torch.testing.assert_close(result.covariance, x.T.cov(), rtol=0, atol=1e-12)
                assert frechet_distance(result, reference) == pytest.approx(
                    frechet_distance(whole, reference), abs=1e-10
                )

    def test_result_may_be_asked_for_at_any_time(self):
        x, running = normal(40, 6), FeatureMoments()
        for k, part in enumerate(x.split(4), start=1):
            running.update(part)
            torch.testing.assert_close(running.result().covariance, x[: 4 * k].T.cov(), rtol=0, atol=1e-13)
        assert running.count == 40

    def test_merging_leaves_the_other_as_it_was(self):
        for count in (3, 20):
            left, right = FeatureMoments(), FeatureMoments()
            left.update(normal(4, 5))
            right.update(normal(count, 5, seed=1))
            left.merge(right)
            right.update(normal(3, 5, seed=2))
            assert left.count == 4 + count and right.count == count + 3
            expected = torch.cat([normal(4, 5), normal(count, 5, seed=1)])
            torch.testing.assert_close(left.result().covariance, expected.T.cov(), rtol=0, atol=1e-13)

    def test_an_empty_one_takes_a_copy(self):
        first, second = FeatureMoments(), FeatureMoments()
        first.update(normal(20, 5))
        second.merge(first)
        second.update(normal(20, 5, seed=1))
        second.result()
        torch.testing.assert_close(first.result().covariance, normal(20, 5).T.cov(), rtol=0, atol=1e-13)

    def test_a_batch_may_be_overwritten_afterwards(self):
        batch, running = normal(3, 5), FeatureMoments()
        running.update(batch)
        batch.zero_()
        torch.testing.assert_close(running.result().mean, normal(3, 5).mean(0), rtol=0, atol=1e-15)

    def test_refusals(self):
        with pytest.raises(ValueError, match="at least 2 samples, got 1"):
            moments(normal(1, 4))
        with pytest.raises(ValueError, match="at least 2 samples, got 0"):
            FeatureMoments().result()
        running = FeatureMoments()
        running.update(normal(9, 4))
        with pytest.raises(ValueError, match="3 dimensions after features of 4"):
            running.update(normal(9, 3))
        for bad in (math.nan, math.inf):
            with pytest.raises(ValueError, match="NaN or infinity"):
                running.update(torch.full((2, 4), bad))
        assert running.count == 9
        with pytest.raises(ValueError, match="NaN or infinity"):
            Moments(torch.zeros(2).double(), torch.full((2, 2), math.nan).double(), 5)
        with pytest.raises(ValueError, match="float64"):
            Moments(torch.zeros(2), torch.eye(2), 5)


class TestMoments:
    def test_refusals(self):
        mean, good = torch.zeros(3).double(), torch.eye(3).double()
        skew = good.clone()
        skew[0, 1] = 1e-3
        negative = torch.diag(torch.tensor([1.0, -1e-3, 1.0])).double()
        for covariance, message in (
            (skew, "symmetric"),
            (negative, "variances must not be negative"),
            (torch.eye(4).double(), r"\(D, D\)"),
            (good / 0, "NaN or infinity"),
            (None, "covariance, or rows"),
        ):
            with pytest.raises(ValueError, match=message):
                Moments(mean, covariance)
        with pytest.raises(ValueError, match="at least 2"):
            Moments(mean, good, 1)
        assert Moments(mean, good).count is None
