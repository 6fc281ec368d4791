"""Load artifacts as a user's own program would, in a process that did nothing else; tests run this as a script."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    from qray.engines.registry import load_artifact

    forks: list[None] = []
    os.register_at_fork(before=lambda: forks.append(None))
    clips_file, answer, *folders = map(Path, sys.argv[1:])
    clips, facts = np.load(clips_file), []
    for folder in folders:
        predict = load_artifact(folder, allow_code=True)
        outputs = {str(batch): predict(clips[:batch]) for batch in (1, 2, 5)}
        facts.append({
            "predictions": {batch: output.tolist() for batch, output in outputs.items()},
            "forks": len(forks),
            "dtypes": sorted({str(output.dtype) for output in outputs.values()}),
            "modules": sorted(name for name, module in sys.modules.items() if module is not None),
        })  # fmt: skip
    answer.write_text(json.dumps(facts), encoding="utf-8")
