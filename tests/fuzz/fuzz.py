"""Fuzz a target by coverage: `python tests/fuzz/fuzz.py TARGET SECONDS [CORPUS]`.

Needs atheris (the extra `fuzz`). Inputs that reach something new are written into CORPUS,
which is given back to it the next time; those worth keeping go to
`tests/fuzz/corpus/TARGET`. As TARGET, `all` stands for each of them, in processes of
their own and some at a time, with a folder for each in CORPUS. FUZZ_SEED is the seed of
the changes of inputs; without it there is another one each time.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "system")]


def main(target: str, seconds: str, corpus: str = "") -> None:
    """Fuzz; a fault ends it, with the input in a file `crash-…`."""
    place = tempfile.mkdtemp(prefix="lgz", dir="/tmp")
    os.environ["XDG_RUNTIME_DIR"] = os.environ["XDG_STATE_HOME"] = place
    with atheris.instrument_imports(include=["logagg", "logagg_sinks"]):
        from parsers import PARSER_SEEDS, PARSERS
        from targets import TARGETS

        for name, each in PARSER_SEEDS.items():  # loads what is loaded when needed
            for data in each:
                PARSERS[name](data)
    from mutate import mutated
    from seeds import SEEDS

    known = {name: list(each.values()) for name, each in SEEDS.items()} | PARSER_SEEDS

    folder = Path(corpus or tempfile.mkdtemp(prefix=f"corpus-{target}-"))
    folder.mkdir(exist_ok=True, parents=True)
    seeds = known[target]
    for number, data in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(data)
    kept = HERE / "corpus" / target
    for path in kept.iterdir() if kept.exists() else ():
        (folder / path.name).write_bytes(path.read_bytes())

    def change(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, seeds, chance)[:most]

    options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=20"]
    options += [f"-seed={os.environ.get('FUZZ_SEED', '0')}"]  # 0: another each time
    options += ["-rss_limit_mb=2048", f"-artifact_prefix={folder}-", str(folder)]
    function = (TARGETS | PARSERS)[target]
    atheris.Setup([sys.argv[0], *options], function, custom_mutator=change)
    atheris.Fuzz()


def fuzz_all(seconds: str, corpus: str = "") -> int:
    """Fuzz each target; the number of those in which a fault was found."""
    from parsers import PARSERS
    from targets import TARGETS

    place = Path(corpus or tempfile.mkdtemp(prefix="corpus-")).resolve()

    def fuzz(target: str) -> int:
        command = [sys.executable, __file__, target, seconds, str(place / target)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            print(done.stdout, done.stderr)
        print(f"{target}: status {done.returncode}", flush=True)
        return done.returncode != 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(fuzz, [*TARGETS, *PARSERS]))


if __name__ == "__main__":
    if sys.argv[1] == "all":
        sys.exit(fuzz_all(*sys.argv[2:]))
    main(*sys.argv[1:])
