"""One program for every server: so many clients, each asking one streamed question after the other.

Raw HTTP over asyncio, so that the client's own work is small beside the server's; a connection for each
request. Run as a process of its own; prints one JSON object with what was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Any
from urllib.parse import urlsplit

SYSTEM_WORDS = 400
RULES = (
    "the answer should be short and kind never name a price say when a part is missing ask for the "
    "number of the machine if it was not given keep to the order of the list and do not guess"
)
TOPICS = (
    "a lighthouse",
    "an old clock",
    "two brothers",
    "a lost letter",
    "the first snow",
    "a garden",
)


def question(arguments: argparse.Namespace, number: int) -> dict[str, str]:
    """Unlike every other from its first words on."""
    topic = TOPICS[number % len(TOPICS)]
    return {"role": "user", "content": f"{arguments.salt}-{number}: tell me a story of {topic}."}


def system(arguments: argparse.Namespace, index: int) -> list[dict[str, str]]:
    """SYSTEM_WORDS words: the same for all clients, or others for each client's own talk; or none."""
    if arguments.prompts == "unique":
        return []
    salt = f"{arguments.salt}-{index}" if arguments.prompts == "talk" else arguments.salt
    rules = RULES.split()
    words = " ".join(rules[index * index % len(rules)] for index in range(SYSTEM_WORDS - 1))
    return [{"role": "system", "content": f"{salt} {words}"}]


async def ask(arguments: argparse.Namespace, messages: list[dict[str, str]]) -> dict[str, Any]:
    """One request; raises ValueError if the answer is not a whole stream."""
    url = urlsplit(arguments.url)
    body = {
        "model": arguments.model,
        "messages": messages,
        "max_tokens": arguments.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **json.loads(arguments.extra),
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {arguments.key}\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(head.encode() + data)
    first, usage, text, ended = None, None, [], False
    async for line in reader:
        if not line.startswith(b"data: {"):
            ended = ended or line.startswith(b"data: [DONE]")
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise ValueError((line + await reader.read()).decode())
            continue
        chunk = json.loads(line.removeprefix(b"data: "))
        if chunk.get("usage"):
            usage = chunk["usage"]
        if chunk.get("choices") and (piece := chunk["choices"][0]["delta"].get("content")):
            first = first or time.perf_counter() - start
            text.append(piece)
    writer.close()
    if arguments.counts_pieces and ended:
        usage = {"completion_tokens": len(text)}
    if usage is None or first is None:
        raise ValueError(f"no whole answer to {messages[-1]['content']!r}")
    if arguments.check_json:
        json.loads("".join(text))
    tokens = usage["completion_tokens"]
    return {"first_seconds": first, "tokens": tokens, "text": "".join(text)}


async def client(arguments: argparse.Namespace, index: int) -> list[dict[str, Any]]:
    """The questions of one client, one after the other; in a talk, each after all that was said before."""
    before, answers = system(arguments, index), []
    for number in range(arguments.requests):
        asked = question(arguments, index * arguments.requests + number)
        answers.append(await ask(arguments, [*before, asked]))
        if arguments.prompts == "talk":
            before += [asked, {"role": "assistant", "content": answers[-1]["text"]}]
    return answers


async def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """All clients together."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(client(arguments, n) for n in range(arguments.clients)))
    seconds = time.perf_counter() - start
    every = [answer for each in answers for answer in each]
    firsts = sorted(each["first_seconds"] for each in every)
    return {
        "tokens_per_second": sum(each["tokens"] for each in every) / seconds,
        "first_p50_seconds": statistics.median(firsts),
        "first_p95_seconds": firsts[min(len(firsts) - 1, round(0.95 * len(firsts)))],
        "tokens": sum(each["tokens"] for each in every),
        "requests": len(every),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="model")
    parser.add_argument("--key", default="none")
    parser.add_argument("--salt", default="0")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--prompts", choices=("unique", "shared", "talk"), default="unique")
    parser.add_argument("--extra", default="{}", help="JSON that is added to each body")
    parser.add_argument("--check-json", action="store_true")
    # For a server that tells no usage in a stream, and sends a piece for each token.
    parser.add_argument("--counts-pieces", action="store_true")
    print(json.dumps(asyncio.run(load(parser.parse_args()))))


if __name__ == "__main__":
    main()
