"""Run as a script: so many processes open one database at the same moment; one line of JSON for each.

python -m tests.contract.many_processes SCHEME URI NUMBER
"""

import asyncio
import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier

from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from skeino.runs import new_id

context = multiprocessing.get_context("fork")  # the imports, which take most of the time, are done once


def main(scheme: str, uri: str, number: int) -> None:
    barrier = context.Barrier(number)
    answers: multiprocessing.Queue[str | None] = context.Queue()
    processes = [context.Process(target=_work, args=(scheme, uri, barrier, answers)) for _ in range(number)]
    for process in processes:
        process.start()
    for _ in processes:
        print(json.dumps(answers.get(timeout=90)))
    for process in processes:
        process.join()


def _work(scheme: str, uri: str, barrier: Barrier, answers: "multiprocessing.Queue[str | None]") -> None:
    problem = None
    barrier.wait(60)
    try:
        asyncio.run(_open_and_write(SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri=uri)))
    except BaseException as exc:
        problem = f"{exc!r}, from {exc.__cause__!r}"
    answers.put(problem)


async def _open_and_write(settings: SkeinoSettings) -> None:
    async with open_persistence(settings) as persistence:
        await persistence.metadata_store.start_run(new_id(), worker_id="w", thread_id="shared")
        await persistence.checkpointer.aget_tuple({"configurable": {"thread_id": "shared"}})


if __name__ == "__main__":
    from tests.contract import many_processes  # not __main__: children look their functions up by name

    many_processes.main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
