"""Folders as the hub keeps data sets: parquet under the names that `push_to_hub` gives, and a card.

Source: `datasets/arrow_dataset.py` (file names `<split>-<number>-of-<number>`), `datasets/info.py` and
`datasets/utils/metadata.py` (the card's `dataset_info` and `configs`), in the installed package datasets.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import parquet

from harness.replica.mark import README

_ROWS_PER_GROUP = 100  # datasets' choice for data with pictures
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """One configuration of a data set. folder: of its parquet files in the repository; splits: their rows."""

    name: str
    folder: str
    features: Any  # datasets.Features
    splits: Mapping[str, Sequence[Row]]


@functools.cache
def strings(*names: str) -> dict[str, Any]:
    """Features of columns of text."""
    from datasets import Value

    return {name: Value("string") for name in names}


def picture(data: bytes, name: str) -> dict[str, Any]:
    """A picture as `datasets.Image` stores it."""
    return {"bytes": data, "path": name}


def write_data_set(folder: Path, configs: Sequence[Config], text: str, num_files: int = 1) -> int:
    """Write the parquet files and the card; returns the rows of all configs.

    num_files: into how many each split is cut.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo

    infos, data_files = [], []
    for config in configs:
        infos.append(
            DatasetInfo(
                config_name=config.name,
                features=config.features,
                splits=SplitDict(
                    {name: SplitInfo(name, 0, len(rows)) for name, rows in config.splits.items()}
                ),
            )._to_yaml_dict()
        )
        places = [{"split": name, "path": f"{config.folder}/{name}-*"} for name in config.splits]
        data_files.append({"config_name": config.name, "data_files": places})
        for split, rows in config.splits.items():
            _write_split(folder / config.folder, split, rows, config.features, num_files)
    card = {"dataset_info": infos[0] if len(infos) == 1 else infos, "configs": data_files}
    (folder / README).write_text(f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n{text}")
    return sum(len(rows) for config in configs for rows in config.splits.values())


def _write_split(folder: Path, split: str, rows: Sequence[Row], features: Any, num_files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        part = rows[number * len(rows) // num_files : (number + 1) * len(rows) // num_files]
        table = pa.Table.from_pylist(list(part), schema=features.arrow_schema)
        path = folder / f"{split}-{number:05d}-of-{num_files:05d}.parquet"
        parquet.write_table(table, path, row_group_size=_ROWS_PER_GROUP)
