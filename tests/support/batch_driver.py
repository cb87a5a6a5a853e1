"""A run of a batch as a process of its own, to be killed: ``batch_driver.py PROMPTS OUTPUT WORKERS THREADS``."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fusionframes.ff_kernels.batch.engine import ModelOptions, engine_factory
from fusionframes.ff_kernels.batch.run import WorkerOptions, run_batch
from support.batch_engine import PoisonedEngine

if __name__ == "__main__":
    prompts, output, count, threads = sys.argv[1:]
    model = ModelOptions(device="cpu", dtype="float32", threads=int(threads))
    engine = partial(PoisonedEngine, engine_factory(model, Path(output)))
    result = run_batch(prompts, output, model=model, workers=WorkerOptions(int(count), engine=engine))
    sys.stdout.write(result.stopped or "")
    sys.exit(result.status)
