"""A model card: the README.md of an exported model, with YAML front matter for the Hugging Face Hub."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from diffusion_lab.interop.diffusers_scheduler import Pipeline
from diffusion_lab.model import Training
from diffusion_lab.page import plus_minus

LAB = """\
```bash
diffusion-lab sample ckpt_path={place} num_samples=64
```

```python
import diffusion_lab

model = diffusion_lab.load("{place}")
images = model.sample(16)  # in [0, 1], (16, {shape})
```
"""

DIFFUSERS = """\
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{place}")
images = pipeline({call}).images
```

From the same noise these are the images of `model.sampler` below in diffusion_lab, not rounded to grey levels.{differs}
"""

TEXT = """\
---
{front}---

# {title}

{model} with the network {network} of {count:,} parameters, {origin} diffusion_lab, for `{data}` of shape {shape};
its {weights} weights after {step:,} steps.

## Use

{use}
## Evaluation

{evaluation}

## Training

{training}

## Configuration

```yaml
{configuration}```
"""


TRAIN, IMPORTED = "```bash\n{words}\n```", "These weights are those of another program."

ROW = "| {name} | {value:.4g}{error} | {samples} | {sampler} | {nfe} | {reference} |"
HEAD = """\
| metric | value | samples | sampler | NFE | reference |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Args:
        model, config, step: the model, its configuration and its number of training steps.
        weights: ema or raw.
        results: contents of results.json for these weights; None if they were not evaluated.
        pipeline: of diffusers; None for format=safetensors.
        place: the repository that the commands name, or "." for this folder.
    """

    model: Training
    config: dict[str, Any]
    step: int
    weights: str
    results: dict[str, Any] | None
    pipeline: Pipeline | None
    place: str

    def text(self) -> str:
        """The whole card, a Markdown file."""
        model, shape, overrides = self.model, "x".join(map(str, self.model.shape)), self.config.get("overrides")
        return TEXT.format(
            front=yaml(self.front()),
            title=self.title,
            model=type(model).__name__,
            network=type(model.network).__name__,
            count=sum(p.numel() for p in model.network.parameters()),
            shape=shape,
            data=self.data,
            weights={"ema": "EMA", "raw": "raw"}[self.weights],
            step=self.step,
            use=self.use(shape),
            evaluation=self.evaluation(),
            origin="imported by" if overrides is None else "trained by",
            training=IMPORTED
            if overrides is None
            else TRAIN.format(words=shlex.join(["diffusion-lab", "train", *overrides])),
            configuration=yaml({"model": self.config["model"]}),
        )

    @property
    def data(self) -> str:
        """Name of the data set."""
        return (self.config.get("choices") or {}).get("data", "data")

    @property
    def title(self) -> str:
        """The name of model and data."""
        return f"{(self.config.get('choices') or {}).get('model', type(self.model).__name__)} on {self.data}"

    def front(self) -> dict[str, Any]:
        """The front matter that the Hub reads."""
        images = {"pipeline_tag": "unconditional-image-generation"} if len(self.model.shape) == 3 else {}
        name = "diffusion_lab" if self.pipeline is None else "diffusers"
        front = {"library_name": name, **images, "tags": ["diffusion_lab", "diffusion", "score-based"]}
        if not self.metrics:
            return front
        values = [{"name": key, "type": key, "value": record["value"]} for key, record in self.metrics.items()]
        task = {"type": "unconditional-image-generation"}
        result = {"task": task, "dataset": {"name": self.data, "type": self.data}, "metrics": values}
        return {**front, "model-index": [{"name": self.title, "results": [result]}]}

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of these weights by name."""
        return (self.results or {}).get("metrics") or {}

    def use(self, shape: str) -> str:
        """Commands that sample from the model."""
        if self.pipeline is None:
            return LAB.format(place=self.place, shape=shape.replace("x", ", "))
        labels = {"class_labels": [0] * 16} if self.model.denoiser.classes else {}
        words = ", ".join(
            f"{key}={value!r}" for key, value in {"batch_size": 16, **labels, **self.pipeline.call}.items()
        )
        return DIFFUSERS.format(place=self.place, call=words, differs=f"\n{self.pipeline.differs}".rstrip())

    def evaluation(self) -> str:
        """A table of the metrics, with what was measured."""
        if not self.metrics:
            return "Not evaluated."
        rows, sampler = [], self.results.get("sampler") or ""
        for name, record in self.metrics.items():
            protocol = record.get("protocol") or {}
            rows.append(
                ROW.format(
                    name=name,
                    value=record["value"],
                    error=plus_minus(record.get("standard_error")),
                    samples=protocol.get("samples", ""),
                    sampler=sampler.partition(" ")[0],
                    nfe=record.get("nfe", self.results.get("nfe", "")),
                    reference=protocol.get("reference", ""),
                )
            )
        return HEAD + "\n".join(rows) + (f"\n\nThe sampler is {sampler}." if sampler else "")


def yaml(settings: dict[str, Any]) -> str:
    """Settings as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(settings))
