"""The text of --help: groups, options and keys with the comments of their files in conf/; nothing is composed."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from diffusion_lab.config.command_line import separate, with_absolute_directories
from diffusion_lab.config.directories import CONF, PARTS, SEARCH, directories, groups, option_file, options
from diffusion_lab.config.origin import program_name
from diffusion_lab.config.validation import nearest
from diffusion_lab.errors import ConfigError

WIDTH = 116

Places = tuple[Path, ...]
"""Directories of configurations, the main one first."""

INTRODUCTION = {
    "train": """Train a score-based or diffusion model and evaluate it.

  python train.py                                              DDPM on scikit-learn's digits, three minutes
  python train.py model=ddpm data=cifar10 trainer.devices=8    the published run
  python train.py -m schedule=linear,cosine                    a sweep; the same command again resumes it
  python train.py ckpt_path=last                               resume the newest run with its original overrides""",
    "sample": """Sample from a checkpoint; evaluate the samples on request. The checkpoint contains the model.

  python sample.py ckpt_path=last                              a grid and the images (.npz)
  python sample.py ckpt_path=last sampler=ddim sampler.steps=50
  python sample.py ckpt_path=last num_samples=1000 evaluate=true likelihood=flow""",
}

GROUPS = {
    "train": (
        "model", "sde", "data", "schedule", "loss", "time_law", "network", "sampler", "guidance", "likelihood",
        "metric", "logger", "debug", "trainer", "experiment",
    ),
    "sample": ("sampler", "guidance", "control", "likelihood", "metric"),
}  # fmt: skip
"""Groups in the order of the overview; the others have one option."""

MANY = {"train": ("loss", "time_law", "network", "sampler", "metric", "experiment"), "sample": ("metric",)}
"""Groups of which the overview lists only the names of options, so that it fits on two screens."""

KEYS = {
    "train": (
        "trainer.max_steps", "data.batch_size", "optimizer.lr", "warmup_steps", "decay_steps", "seed",
        "network.channels", "callback.ema.decay", "trainer.accelerator", "trainer.devices",
        "trainer.precision", "trainer.gradient_clip_val", "trainer.val_check_interval", "sampler.steps",
        "metric.samples",
        "callback.samples.every_n_steps", "callback.checkpoint.every_n_steps", "callback.evaluation.every_n_steps",
        "ckpt_path", "compile",
    ),
    "sample": (),
}  # fmt: skip
"""Keys that are often changed; for sample.py, all keys of conf/sample.yaml are shown."""


@dataclass(frozen=True)
class Key:
    """A key of a file in conf/: its default as it is written there, and its comment."""

    name: str
    default: str
    comment: str


def help_text(task: str, arguments: Sequence[str]) -> str:
    """The help of a command; with `arguments`, that of the groups, options or keys they name.

    Raises:
        ConfigError: for a word that names none of them.
    """
    topics, found = [word for word in arguments if word not in ("--help", "-h")], (CONF,)
    if any(word.startswith("-") or SEARCH in word for word in topics):  # other options, whose values are not topics
        flags, topics = separate(topics)
        overrides = with_absolute_directories([*flags, *topics])
        main = next((word.partition("=")[2] for word in overrides if word.startswith("--config-path=")), None)
        found, topics = directories(overrides, main), [word for word in topics if SEARCH not in word]
    return "\n\n".join(topic(task, word, found) for word in topics) if topics else overview(task, found)


def overview(task: str, found: Places = (CONF,)) -> str:
    """What a command does, its groups with one line per option, and the keys that are often changed."""
    program = program_name(task)
    introduction = INTRODUCTION[task].replace(f"python {task}.py", program)
    parts = [introduction, "", "Choose with group=option (the first line of each file in conf/GROUP):", ""]
    for group in GROUPS[task]:
        parts += listed(group, task, found)
    parts += ["", "Set with key=value (defaults; recipes and experiments replace some of them):", ""]
    parts += [line(key) for key in keys_of(task)]
    first = GROUPS[task][0]
    parts += [
        "",
        f"More:  {program} --help {first}   a group, with all keys       --help {first}=NAME or KEY   an option, a key",
        f"       {program} --cfg job    what a command composes             -m   a sweep over key=a,b,c",
        '       eval "$(diffusion-lab completion bash)"    completion of diffusion-lab with the Tab key (or zsh, fish)',
    ]
    return "\n".join(parts)


def listed(group: str, task: str, found: Places = (CONF,)) -> list[str]:
    """A group's options, each with the first comment in its file."""
    names = [n for n in options(group, found) if not n.startswith("small/") and (n, task) != ("trained", "train")]
    if group in MANY[task]:
        folders = [f"{folder}/..." for folder in dict.fromkeys(n.split("/")[0] for n in names if "/" in n)]
        message = ", ".join([n for n in names if "/" not in n] + folders)
        return textwrap.wrap(message, WIDTH, initial_indent=f"{group + '=':<12}", subsequent_indent=" " * 12)
    shown = [f"{name:<22}{summary(option_file(group, name, found))}".rstrip() for name in names]
    return [f"{head:<12}{text}" for head, text in zip_longest([f"{group}="], shown, fillvalue="")]


def line(key: Key) -> str:
    """A key with its default and comment on one line."""
    default = "null" if key.default.startswith("${") else key.default
    return f"{key.name}={default}".ljust(40) + textwrap.shorten(key.comment, WIDTH - 38, placeholder=" ...")


def topic(task: str, word: str, found: Places = (CONF,)) -> str:
    """The help of a group with all its options, of one option, or of a key.

    Raises:
        ConfigError: for anything else.
    """
    group, _, name = word.partition("=")
    known = groups_of(task, found)
    if group in known:
        names = options(group, found)
        if name and name not in names:
            raise ConfigError(f"{word} is not an option of {group}{nearest(name, names)}")
        shown = [name] if name else [n for n in names if (n, task) != ("trained", "train")]
        return "\n\n".join(f"{group}={n}\n{textwrap.indent(contents(group, n, found), '  ')}" for n in shown)
    keyed = every_key(task, found)
    asked = [(where, key) for where, key in keyed if key.name == group or ends(key.name, group)]
    if asked:
        width = max(len(where) for where, _ in asked)
        return "\n".join(dict.fromkeys(f"{where:<{width}}{line(key)}" for where, key in asked))
    close = nearest(group, [*known, *(key.name for _, key in keyed)])
    raise ConfigError(f"--help {word}: no such group or key{close}; groups: {', '.join(known)}")


def ends(name: str, last: str) -> bool:
    """Whether the last part of a key is this one."""
    return name.rpartition(".")[2] == last


def keys_of(task: str) -> list[Key]:
    """The keys in the overview."""
    if task == "sample":
        return keys(CONF / "sample.yaml")
    keyed = sorted(reversed(every_key(task)), key=lambda entry: entry[0].strip() == "sampler=custom")
    found = {key.name: key for _, key in keyed}  # the first file that has a key counts, the base of all samplers before
    return [found[name] for name in KEYS[task] if name in found]


@functools.cache
def every_key(task: str, found: Places = (CONF,)) -> tuple[tuple[str, Key], ...]:
    """(option that has it, key) of all files of a command's groups; "" for the command's own keys."""
    at_top = [("", key) for key in keys(CONF / f"{task}.yaml")]
    of_groups = [
        (f"{group}={name}  ", Key(f"{group.replace('/', '.')}.{key.name}", key.default, key.comment))
        for group in groups_of(task, found)
        if group not in ("experiment", "recipe", "debug")
        for name in options(group, found)
        for key in keys(option_file(group, name, found))
    ]
    return (*at_top, *of_groups)


def groups_of(task: str, found: Places = (CONF,)) -> list[str]:
    """Every group of a command."""
    return [*GROUPS[task], *PARTS] if task == "sample" else [group for group in groups(found) if group != "hydra"]


def contents(group: str, name: str, found: Places = (CONF,)) -> str:
    """The text of an option's file, without the name of the class."""
    lines = option_file(group, name, found).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith("_target_"))


def summary(file: Path) -> str:
    """The first comment of a file, shortened."""
    first = next((x for x in file.read_text(encoding="utf-8").splitlines() if x and "@package" not in x), "")
    return textwrap.shorten(first.lstrip("# "), WIDTH - 34, placeholder=" ...") if first.startswith("#") else ""


@functools.cache
def keys(file: Path) -> list[Key]:
    """The keys of a file, with dotted names."""
    return list(_keys(file.read_text(encoding="utf-8").splitlines()))


def _keys(lines: Sequence[str]) -> Iterator[Key]:
    parents: list[tuple[int, str]] = []
    for written in lines:
        found = re.fullmatch(r"( *)([\w./@]+):(?: +([^#]*?))?(?:\s+#\s*(.*))?\s*", written)
        if not found:
            continue
        indent, name, default, comment = len(found[1]), found[2], found[3] or "", found[4] or ""
        parents = [(depth, parent) for depth, parent in parents if depth < indent]
        dotted = ".".join([*(parent for _, parent in parents), name])
        if not default:
            parents.append((indent, name))
        elif name not in ("_target_", "_partial_") and not dotted.startswith("defaults"):
            yield Key(dotted, default, comment)
