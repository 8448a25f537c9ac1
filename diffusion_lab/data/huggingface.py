"""Image data sets of the Hugging Face hub, or on disk in the formats of its package `datasets`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from diffusion_lab.data.base import Splits
from diffusion_lab.data.encoded import Encoded, EncodedImages, Source, hold_out, require_fraction
from diffusion_lab.data.framing import Resampling

if TYPE_CHECKING:
    from datasets import Dataset as Table


@dataclass(kw_only=True, eq=False)
class HuggingFace(EncodedImages):
    """Images of a column of `name`, cropped to the centre and resized to `shape`.

    name: a folder (of images or parquet files, or written by `save_to_disk`), or else a data set of the hub. Nothing
    is downloaded unless `download` is true, and no program of a data set is ever run.  config: the hub's word for one
    of several versions.  held_out_split: None holds rows out by the hash of their number, so that rows added at the end
    move none.  image_column: images, encoded bytes or paths.  label_column: integers; None labels all 0.  data_dir:
    the cache; None takes Hugging Face's own.

    Raises ImportError without the package datasets, FileNotFoundError for a set that is not there, ValueError for a
    split or column that is not, naming those that are.
    """

    name: str = field()  # or the base class of Lightning would lend it a default
    config: str | None = None
    train_split: str = "train"
    held_out_split: str | None = None
    held_out_fraction: float = 0.1
    image_column: str = "image"
    label_column: str | None = None
    resampling: Resampling = "bicubic"
    data_dir: str | None = None
    download: bool = False

    places = ("data_dir", "name")  # a folder of that name may be copied to another machine

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.held_out_fraction)

    def prepare_data(self) -> None:
        """Download what is missing, if asked to, before other processes look for it."""
        if self.download:
            self._tables()

    def load(self) -> Splits:
        tables = self._tables()
        train = self._split(tables, self.train_split)
        self.class_names = getattr(train.features.get(self.label_column), "names", None)
        if self.held_out_split is not None:
            held_out = self._split(tables, self.held_out_split)
            how = f"splits {self.train_split}, {self.held_out_split}"
        else:
            rows = [str(row) for row in range(len(train))]
            train, held_out = map(train.select, hold_out(rows, self.held_out_fraction))
            how = f"{self.held_out_fraction} held out by hash of the row"
        unused = [split for split in tables if split not in (self.train_split, self.held_out_split)]
        notes = [f"not used: {split}, {len(tables[split])} rows" for split in unused]
        return self.divided(self._encoded(train), self._encoded(held_out), how, notes)

    def _tables(self) -> Mapping[str, Table]:
        try:
            import datasets
        except ImportError as error:
            raise ImportError('data=huggingface needs the package datasets: pip install -e ".[huggingface]"') from error
        folder = Path(self.name).expanduser()
        cache = None if self.data_dir is None else str(Path(self.data_dir).expanduser())
        try:
            with reaching_the_hub(self.download):
                if (folder / "dataset_dict.json").exists():
                    return datasets.load_from_disk(folder)
                if (folder / "state.json").exists():
                    return {self.train_split: datasets.load_from_disk(folder)}
                return datasets.load_dataset(
                    str(folder) if folder.is_dir() else self.name, self.config, cache_dir=cache
                )
        except Exception as error:  # of the hub, of the file formats, of the disk
            advice = "" if self.download or folder.exists() else "; set data.download=true, or data.name to a folder"
            raise FileNotFoundError(f"data.name={self.name} cannot be read ({one_line(error)}){advice}") from error

    def _split(self, tables: Mapping[str, Table], split: str) -> Table:
        if split not in tables:
            raise ValueError(f"{self.name} has no split {split}: choose one of {', '.join(tables)}")
        columns = tables[split].column_names
        for key, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column is not None and column not in columns:
                raise ValueError(f"data.{key}={column} is not in {self.name}: choose one of {', '.join(columns)}")
        return tables[split]

    def _encoded(self, table: Table) -> Encoded:
        import datasets

        try:
            images = table.select_columns(self.image_column).cast_column(
                self.image_column, datasets.Image(decode=False)
            )
            images[0]
        except Exception as error:  # of Arrow, in a type that depends on the column's
            raise ValueError(f"data.image_column={self.image_column} holds no images ({one_line(error)})") from error
        framing = self.framing(resampling=self.resampling)
        return Encoded(Rows(self.name, images, self.image_column), self._labels(table), framing)

    def _labels(self, table: Table) -> Tensor:
        if self.label_column is None:
            return torch.zeros(len(table))
        values = table[self.label_column][:]
        if not all(type(value) is int for value in values):
            raise ValueError(f"data.label_column={self.label_column} must hold integers: set it to null, or another")
        return torch.tensor(values)


class Rows(Source):
    """Rows of a table, each with the encoded bytes of an image or the path of its file."""

    def __init__(self, name: str, table: Table, column: str) -> None:
        self.name, self.table, self.column = name, table, column

    def __len__(self) -> int:
        return len(self.table)

    def key(self, index: int) -> str:
        return str(index)

    def place(self, index: int) -> str:
        return f"{self.name}, row {index} of {len(self)}"

    def open(self, index: int) -> BinaryIO:
        image: dict[str, Any] = self.table[int(index)][self.column]
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb")

    def take(self, indices: Sequence[int]) -> Rows:
        return Rows(self.name, self.table.select(indices), self.column)

    def stamp(self) -> bytes:
        files = [Path(file["filename"]) for file in self.table.cache_files]
        if self.table[0][self.column]["bytes"] is None:
            files += [Path(row[self.column]["path"]) for row in self.table]
        found = hashlib.sha256(f"{self.table._fingerprint} ".encode())
        for path in files:
            found.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
        return found.digest()


@contextmanager
def reaching_the_hub(allowed: bool) -> Iterator[None]:
    """Keep `datasets` off the network for a while, unless allowed; the environment's HF_HUB_OFFLINE=1 always does."""
    import datasets
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or not allowed
        yield
    finally:
        for place, offline in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = offline


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
