"""The page to play under load: `python -m bench.play CHECKPOINT REQUESTS CLIENTS [SETTING…]`, in a project.

Prints the seconds until the page answers and until the first sound, then those of all requests, whether each client got the sound
of its own label and seed (a second pass must repeat the bytes), and the memory of the program on the way.
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
from gradio_client import Client

from soundmill import hashing
from soundmill.training import checkpoint
from tests.mlflow_server import free_port


def main() -> None:
    parser = argparse.ArgumentParser(description="The page to play under load, in a project.")
    parser.add_argument("checkpoint", help="its path in the project")
    parser.add_argument("requests", type=int)
    parser.add_argument("clients", type=int)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, as `--set` takes them")
    args = parser.parse_args()
    measure(args.checkpoint, args.requests, args.clients, args.settings)


def measure(directory: str, requests: int, clients: int, settings: list[str]) -> None:
    labels, port, start = checkpoint.read(Path(directory))["labels"], free_port(), time.monotonic()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "soundmill", "play", "--port", str(port)]
    # As the Makefile has it: from the second time on, Gradio's bytecode is there.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        process = psutil.Process(program.pid)
        while not _answers(url):
            time.sleep(0.05)
        print(f"page {time.monotonic() - start:.1f} s, {_cpu(process):.1f} s of CPU", flush=True)
        open_clients = [Client(url, verbose=False) for _ in range(clients)]

        def ask(number: int) -> tuple[int, str]:
            label = labels[number % len(labels)]
            answer = open_clients[number % clients].predict(directory, [label], number, settings, api_name="/sound")
            asked = answer["request"]
            assert (asked["prompts"], asked["seed"]) == ([label], number), asked
            with urllib.request.urlopen(f"{url}gradio_api/file={answer['file']}") as file:
                return number, hashing.bytes_digest(file.read())

        start, cpu = time.monotonic(), _cpu(process)
        ask(0)
        print(f"first sound {time.monotonic() - start:.1f} s, {_cpu(process) - cpu:.1f} s of CPU", flush=True)
        passes = []
        for _ in range(2):
            start, cpu = time.monotonic(), _cpu(process)
            with ThreadPoolExecutor(clients) as pool:
                passes.append(dict(pool.map(ask, range(requests))))
            memory = process.memory_info().rss / 1e6
            took, used = time.monotonic() - start, _cpu(process) - cpu
            print(f"{len(passes[-1])} sounds {took:.1f} s, {used:.1f} s of CPU, memory {memory:.0f} MB", flush=True)
        different = sum(passes[0][number] != passes[1][number] for number in range(requests))
        print(f"{len(set(passes[0].values()))} different sounds, {different} not repeated bit for bit")
    finally:
        program.terminate()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url):
        return True
    return False


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
