"""The comparisons with the baseline, question by question, written beside the leaderboard that shows them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from encoder.runtime.stage import write_json
from harness.running.launch import Outcome
from harness.tables.leaderboard import COMPARISONS
from harness.tables.result_files import Row


def write(
    seeds: Sequence[Sequence[Row]], outcomes: Mapping[Path, Outcome], baseline: str | None, folder: Path
) -> None:
    """Write `comparisons.json` into the suite's results folder, or remove it where nothing can be compared.

    seeds: the suite's rows, once for each seed.
    """
    path = folder / COMPARISONS
    samples: dict[str, list[Path]] = {}
    questions: dict[str, tuple[Path, ...]] = {}
    for rows in seeds:
        for row in rows:
            for part in row.parts:
                if part.answers is not None and outcomes[part.stage.folder].is_complete:
                    samples.setdefault(row.encoder, []).append(part.answers)
                    questions[row.encoder] = part.data
    content = None
    if baseline in samples and len(samples) > 1:
        from harness.tables.bootstrap import (  # here: pyarrow and numpy would delay the command line
            Answers,
            compare,
        )

        answers = [
            Answers(encoder=name, samples=list(dict.fromkeys(paths)), questions=questions[name])
            for name, paths in samples.items()
        ]
        content = compare(answers, baseline)
    if content is None:
        path.unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
