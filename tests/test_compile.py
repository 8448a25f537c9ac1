"""compile=true changes speed only: names, keys and numbers of a network stay, and it is translated a few times at most."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from experiment import composed
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from torch._dynamo.utils import counters

from diffusion_lab.callback import EMA
from diffusion_lab.config.compose import CONF
from diffusion_lab.config.validation import validate
from diffusion_lab.data import Toy2D
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.likelihood import FlowLikelihood
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Linear
from diffusion_lab.run import lightning, sample, train
from diffusion_lab.sampler import DDIM, Sampler


def network() -> MLP:
    torch.manual_seed(0)
    made = MLP(width=4, depth=1, embedding=4)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def answer(made: MLP) -> list[torch.Tensor]:
    """Output and gradients."""
    generator = torch.Generator().manual_seed(1)
    output = made(torch.randn(8, 2, generator=generator), torch.arange(8.0))
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(made.parameters()))]


def test_numbers_and_keys_are_those_of_the_network_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    plain, fast = network(), network()
    lightning.compile_network(fast, torch.device("cpu"))
    counters.clear()
    for a, b in zip(answer(plain), answer(fast), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1 and list(tmp_path.rglob("*.so")), "it was not compiled"
    assert plain.state_dict().keys() == fast.state_dict().keys() and type(fast) is MLP
    other = network().double().float()
    for source, target in ((fast, other), (plain, fast)):
        with torch.no_grad():
            source.linear_in.bias.add_(1.0)
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(answer(source)[0], answer(target)[0], rtol=1e-5, atol=1e-5)


def test_training_validation_sampling_and_likelihood_are_translated_once_each(tmp_path):
    torch._dynamo.reset()
    counters.clear()
    made = network()
    made.compile(backend="aot_eager")  # what is translated, and when, without a C++ compiler's time
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
    sampler = Sampler(DDIM(), steps=4)
    flow = FlowLikelihood(rtol=0.1, atol=0.1)
    model = DDPM(made, Linear(), DenoisingLoss(), sampler, {"flow": flow}, adam, (2,), grey_levels=None)
    model.config = {}

    class Meanwhile(pl.Callback):
        """Draws samples and evaluates a likelihood after every step, in batches of two sizes."""

        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            model.sample(7, batch_size=4)
            with model.evaluating():
                model.likelihood["flow"](model.denoiser, batch[0][:3], None, torch.Generator().manual_seed(0))
            graphs.append(counters["stats"]["unique_graphs"])

    graphs: list[int] = []
    trainer = pl.Trainer(
        max_steps=6, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=2,
        check_val_every_n_epoch=None, callbacks=[EMA(0.9), Meanwhile()],
    )  # fmt: skip
    trainer.fit(model, datamodule=Toy2D(train_size=50, held_out_size=21, batch_size=8, eval_batch_size=10))
    assert graphs[-1] == graphs[2] <= 6, graphs
    assert not counters["graph_break"], counters["graph_break"]


def test_training_and_sampling_tell_the_network_the_time_in_one_kind_of_tensor():
    kinds = set()
    nothing = lambda x, t: kinds.add((t.dtype, t.stride())) or x  # noqa: E731
    denoiser = Denoiser(nothing, DiscreteProcess(Linear(), 10), Parameterization("eps", "level", -1.0, 1.0))
    for t in (torch.tensor(0.5), torch.full((3,), 0.5), torch.tensor(0.5, dtype=torch.float64)):
        denoiser(torch.zeros(3, 2), t)
    assert kinds == {(torch.float32, (1,))}


@pytest.mark.parametrize("device, replay", [("cpu", True), ("cuda", False), ("cuda", True)])
def test_only_sampling_on_a_gpu_replays_a_recorded_graph(monkeypatch, capsys, device, replay):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: x)
    monkeypatch.setattr(torch, "ones", lambda *size, device: None)
    monkeypatch.setattr(MLP, "compile", lambda self, **options: asked.append(options))
    lightning.compile_network(network(), torch.device(device), replay=replay)
    assert "compile the network, which takes minutes" in capsys.readouterr().out
    assert asked == [{"mode": "reduce-overhead", "dynamic": False} if device == "cuda" and replay else {}]


def tiny(*words: str) -> dict:
    made = composed("data=toy2d", "data.train_size=50", "data.held_out_size=10", "debug=fast", *words)
    return {**made, "choices": {"sampler": "ancestral"}}


@pytest.mark.parametrize("wanted", [True, False])
def test_the_key_compiles_the_network_that_is_trained(tmp_path, monkeypatch, wanted):
    seen = []
    monkeypatch.setattr(train, "compile_network", lambda *arguments: seen.append(arguments))
    settings = tiny("trainer.accelerator=cpu", f"compile={str(wanted).lower()}")
    _, model, trainer = train.set_up(settings, tmp_path)
    assert seen == [(model.network, trainer.strategy.root_device)] * wanted


@pytest.mark.parametrize("words", [["loss=implicit"], ["loss=sliced"], ["network=energy"]])
def test_what_differentiates_twice_is_refused(words):
    validate(tiny(*words))
    with pytest.raises(
        ConfigError, match=" needs second derivatives, which torch.compile does not support: set compile=false"
    ):
        validate(tiny(*words, "compile=true"))


def test_the_key_compiles_the_network_that_is_sampled_from(tmp_path, monkeypatch):
    settings = tiny("trainer.accelerator=cpu")
    model, path = train.set_up(settings, tmp_path)[1], tmp_path / "model.ckpt"
    torch.save({"config": settings, "state_dict": model.state_dict(), "global_step": 0}, path)
    words = [f"ckpt_path={path}", "weights=raw", "compile=true", "trainer.accelerator=cpu", f"paths.log_dir={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra, config = compose("sample", words, return_hydra_config=True).hydra, compose("sample", words)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)

    class Compiled(Exception):
        """What is compiled, instead of the rest."""

    def noted(*arguments, replay):
        raise Compiled(*arguments, replay)

    monkeypatch.setattr(sample, "compile_network", noted)
    with pytest.raises(Compiled) as message:
        sample.sample(config)
    made, device, replay = message.value.args
    assert isinstance(made, MLP) and device.type == "cpu" and replay


def test_without_a_compiler_it_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    made = network()
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere")}),
        pytest.raises(ConfigError, match="compile=true needs a working compiler for cpu .*C\\+\\+ compiler") as refused,
    ):
        lightning.compile_network(made, torch.device("cpu"))
    assert "\n" not in str(refused.value) and made._compiled_call_impl is None
