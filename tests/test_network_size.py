"""Sizes of images that a network cannot take: told with the settings and the sizes that fit, which are true."""

from __future__ import annotations

import re

import pytest
import torch
from experiment import composed

from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.validation import validate
from diffusion_lab.errors import ConfigError

REFUSED = {
    "data=image_folder data.root=. data.shape=[3,28,28] network=unet": "network.multipliers=[1,2,2] network.attention=[14]",
    "data=image_folder data.root=. data.shape=[3,30,30] network=unet": "network.multipliers=[1,2] network.attention=[15]",
    "data=image_folder data.root=. data.shape=[3,28,31] network.multipliers=[1,2,2] network.attention=[]":
        "network.multipliers=[1]",
    "data=image_folder data.root=. data.shape=[3,63,63] network=unet": "network.multipliers=[1] network.attention=[]",
    "data=image_folder data.root=. data.shape=[3,32,36]": "use network.multipliers=[1,2,2], or data.shape=[3,32,32], or data.shape=[3,32,40]",
    "data=cifar10 network.attention=[16,7]": "network.attention=[16,8]",
    "data=cifar10 network=ncsnpp model=score_sde sde=ve network.attention=[3]": "network.attention=[4]",
    "model=ncsn data=image_folder data.root=. data.shape=[3,31,32]": "data.shape=[3,30,32]",
    "data=digits network=energy_small network.network.attention=[5]": "network.network.attention=[4]",
}  # fmt: skip


@pytest.mark.parametrize("command, way", REFUSED.items(), ids=list(REFUSED))
def test_a_size_that_does_not_fit_is_told_with_settings_that_do(command, way):
    words = command.split()
    with pytest.raises(ConfigError) as refusal:
        validate(composed(*words))
    message = str(refusal.value)
    assert "\n" not in message and way in message
    for overrides in message.split(": use ")[1].split(", or "):
        config = composed(*words, *overrides.split())
        validate(config)
        shape = config["data"]["shape"]
        small = {"channels": 8, "blocks": 1, "groups": 4}
        node = config["network"] if "network" not in config["network"] else config["network"]["network"]
        network = instantiate({**node, **{key: value for key, value in small.items() if key in node}})
        x = torch.zeros(1, *shape)
        assert network(x, torch.zeros(1)).shape == x.shape


def test_sizes_that_fit_are_not_refused():
    for shape in ("[3,64,64]", "[3,32,48]", "[1,8,16]"):
        validate(composed("data=image_folder", "data.root=.", f"data.shape={shape}", "network.attention=[]"))
    assert not re.search("attention", str(validate(composed("data=toy2d"))))
