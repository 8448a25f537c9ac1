"""Files of statistics: read back, read by others, and refused when they are not what they seem."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
import torch
from hostile import Hostile

from diffusion_lab.metric import Moments, Statistics, frechet_distance, moments


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


PROTOCOL = {"extractor": "digits", "samples": 20, "share": 0.5, "quantised": True}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "new" / "stats.npz"
    rows = normal(20, 6).float()
    Statistics(moments(rows), rows[:7].double(), PROTOCOL).save(path)
    return path


class TestOurFile:
    def test_is_read_back(self, file):
        loaded, rows = Statistics.load(file), normal(20, 6).float()
        assert torch.equal(loaded.moments.mean, rows.double().mean(0))
        torch.testing.assert_close(loaded.moments.covariance, rows.double().T.cov(), rtol=0, atol=1e-14)
        assert loaded.moments.count == 20 and torch.equal(loaded.features, rows[:7])
        assert dict(loaded.protocol) == PROTOCOL
        assert [type(value) for value in loaded.protocol.values()] == [str, bool, int, float]  # sorted by name
        assert frechet_distance(loaded.moments, moments(rows)) == pytest.approx(0, abs=1e-12)

    def test_is_what_other_programs_expect(self, file):
        with np.load(file) as arrays:
            assert set(arrays.files) == {"mu", "sigma", "count", "features", "protocol"}
            assert arrays["mu"].dtype == arrays["sigma"].dtype == np.float64
            assert arrays["mu"].shape == (6,) and arrays["sigma"].shape == (6, 6)
            assert arrays["features"].dtype == np.float32 and arrays["features"].shape == (7, 6)
            assert json.loads(str(arrays["protocol"])) == PROTOCOL

    def test_needs_nothing_but_moments(self, tmp_path):
        Statistics(Moments(torch.zeros(2).double(), torch.eye(2).double())).save(tmp_path / "bare.npz")
        loaded = Statistics.load(tmp_path / "bare.npz")
        assert loaded.moments.count is None and loaded.features is None and dict(loaded.protocol) == {}

    def test_is_written_whole_or_not_at_all(self, file, monkeypatch):
        before = file.read_bytes()

        def interrupted(target, **arrays):
            target.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Statistics(moments(normal(9, 6))).save(file)
        assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]

    def test_holds_plain_values_and_rows_that_fit(self):
        known = moments(normal(9, 3))
        for value in (None, [1], {"a": 1}, torch.ones(())):
            with pytest.raises(ValueError, match="protocol 'digest' must be"):
                Statistics(known, protocol={"digest": value})
        with pytest.raises(ValueError, match="do not fit a mean of 3"):
            Statistics(known, normal(5, 4))
        with pytest.raises(ValueError, match="NaN"):
            Statistics(known, normal(5, 3) / 0)


class TestOtherPrograms:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_mu_and_sigma(self, tmp_path, dtype):
        # pytorch-fid, EDM, clean-fid; guided-diffusion adds spatial statistics and images.
        sigma = normal(30, 4).T.cov().numpy().astype(dtype)
        sigma[0, 1] *= 1 + 1e-7
        np.savez(
            tmp_path / "fid.npz", mu=np.arange(4, dtype=dtype), sigma=sigma, mu_s=np.ones(3), arr_0=np.ones((2, 2))
        )
        loaded = Statistics.load(tmp_path / "fid.npz")
        assert loaded.moments.mean.tolist() == [0, 1, 2, 3] and loaded.moments.mean.dtype == torch.float64
        torch.testing.assert_close(loaded.moments.covariance, normal(30, 4).T.cov(), rtol=1e-6, atol=0)
        assert loaded.moments.count is None and loaded.features is None and loaded.protocol == {}

    def test_features_of_score_sde(self, tmp_path):
        rows = normal(50, 4).numpy().astype(np.float32)
        np.savez_compressed(tmp_path / "cifar10_stats.npz", pool_3=rows)
        loaded = Statistics.load(tmp_path / "cifar10_stats.npz")
        assert loaded.moments.count == 50
        np.testing.assert_allclose(loaded.moments.covariance, np.cov(rows.astype(float).T), rtol=0, atol=1e-12)


class TestRefusals:
    def refused(self, path, message):
        with pytest.raises(ValueError, match=message) as error:
            Statistics.load(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"stats.npz are missing: compute them"):
            Statistics.load(tmp_path / "stats.npz")

    @pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
    def test_cut_file(self, file, share):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        self.refused(file, r"truncated, or not an .npz file: floats mu \(D,\) and sigma \(D, D\) are expected")

    def test_changed_byte(self, file):
        content = bytearray(file.read_bytes())
        place = content.index(np.load(file)["sigma"].tobytes())
        content[place + 3] ^= 1
        file.write_bytes(content)
        self.refused(file, "sigma is damaged")

    def test_a_pickle_is_never_executed(self, tmp_path):
        trap, path = tmp_path / "trap", tmp_path / "hostile.npz"
        path.write_bytes(pickle.dumps(Hostile(trap)))
        self.refused(path, "truncated, or not an .npz file")
        np.savez(path, mu=np.zeros(1), sigma=np.array([[Hostile(trap)]], dtype=object))
        self.refused(path, "sigma is pickled or damaged: refused, not executed")
        assert not trap.exists()
        np.load(path, allow_pickle=True)["sigma"]
        assert trap.exists()  # the trap works

    def test_an_array_alone(self, tmp_path):
        buffer = io.BytesIO()
        np.save(buffer, np.eye(3))
        (tmp_path / "sigma.npz").write_bytes(buffer.getvalue())
        self.refused(tmp_path / "sigma.npz", "not an .npz file")

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": np.ones((2, 2))}, "it has no mu and no sigma"),
            ({"mu": np.ones(3)}, "it has no sigma"),
            ({"mu": np.ones(3), "sigma": np.eye(4)}, r"\(D, D\)"),
            ({"mu": np.ones((3, 1)), "sigma": np.eye(3)}, r"mu is float64 \(3, 1\)"),
            ({"mu": np.ones(3), "sigma": np.ones(3)}, r"sigma is float64 \(3,\)"),
            ({"mu": np.ones(3), "sigma": np.eye(3, dtype=int)}, "sigma is int64"),
            ({"mu": np.ones(3), "sigma": np.triu(np.ones((3, 3)))}, "symmetric, but entries differ by up to 1"),
            ({"mu": np.ones(3), "sigma": -np.eye(3)}, "variances must not be negative"),
            ({"mu": np.ones(3), "sigma": np.full((3, 3), np.inf)}, "NaN or infinity"),
            ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN or infinity"),
            ({"mu": np.ones(3), "sigma": np.eye(3), "count": np.array(1)}, "at least 2 samples, got 1"),
            ({"mu": np.ones(3), "sigma": np.eye(3), "count": np.array("many")}, "count is <U4"),
            ({"mu": np.ones(3), "sigma": np.eye(3), "features": np.ones((5, 4))}, "do not fit"),
            ({"mu": np.ones(3), "sigma": np.eye(3), "protocol": np.array("[1]")}, "must be a JSON mapping"),
            ({"mu": np.ones(3), "sigma": np.eye(3), "protocol": np.array("{cut")}, "must be a JSON mapping"),
            ({"mu": np.ones(3), "sigma": np.eye(3), "protocol": np.array('{"a": [1]}')}, "protocol 'a' must be"),
            ({"pool_3": np.ones((2, 3, 4))}, r"pool_3 is float64 \(2, 3, 4\)"),
            ({"pool_3": np.ones((1, 4))}, "at least 2 samples"),
        ],
    )
    def test_contents_that_are_no_statistics(self, tmp_path, arrays, message):
        np.savez(tmp_path / "other.npz", **arrays)
        self.refused(tmp_path / "other.npz", message)
