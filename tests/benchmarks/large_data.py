"""Memory, start and resume times of a run out of the cache, over the number of records; run by hand.

python -m tests.benchmarks.large_data FOLDER COUNT: a line of JSON each for encoding and training, for starting with the
cache present, and for resuming. The data stay in FOLDER.
"""

import json
import os
import shutil
import subprocess
import sys
import time

RUNS = (("encode", 20), ("start", 20), ("resume", 40))


def write(path, count):
    """Short records, if they are not there."""
    if not os.path.exists(path):
        with open(f"{path}.part", "w") as file:
            for i in range(count):
                file.write(json.dumps({"instruction": f"{i} + {i % 89} =", "response": str(i + i % 89)}) + "\n")
        os.rename(f"{path}.part", path)


def measure(path, cache, what, steps):
    """One run, in this process: a row of the table."""
    import jpo
    from tests.peak_memory import Growth, resident

    lm = jpo.load("tiny", compute="float32")
    growth, begun, cpu = Growth(), time.perf_counter(), time.process_time()
    options = {"batch_size": 64, "template": "raw", "save_steps": 0, "warmup_steps": 10}
    config = jpo.SFTConfig(steps=steps, cache_dir=cache, output=f"{path}.run", **options)
    trainer = jpo.SFTTrainer(lm, path, config)
    start, start_cpu = time.perf_counter() - begun, time.process_time() - cpu
    begun, rows = time.perf_counter(), []
    trainer.train(resume=what == "resume", callbacks=[lambda row: rows.append(time.perf_counter() - begun)])
    return {
        "what": what,
        "records": len(trainer.examples),
        "start_s": round(start, 2),
        "start_cpu_s": round(start_cpu, 2),
        "first_step_s": round(rows[0], 2),
        "grown_mb": round(growth.end() / 2**20, 1),
        "peak_mb": round(resident("VmHWM") / 2**20, 1),
    }


def main(folder, count, what=None, steps=0):
    """All runs of a count, each in a process of its own."""
    path, cache = os.path.join(folder, f"{count}.jsonl"), os.path.join(folder, "cache")
    if what is not None:
        print(json.dumps(measure(path, cache, what, int(steps))), flush=True)
        return
    write(path, int(count))
    for name, number in RUNS:
        if name != "resume":
            shutil.rmtree(f"{path}.run", ignore_errors=True)
        subprocess.run([sys.executable, "-m", __spec__.name, folder, count, name, str(number)], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
