"""vLLM's own benchmark client in a process of its own. `python -m distill.bench.serving_child`, key in OPENAI_API_KEY.

A line on standard input is a load:

    url, model        of the server
    prompts           lists of token ids
    tokens            of every answer
    concurrency       of a closed loop; null in an open one
    arrivals_s        of an open loop, in seconds from its start; null in a closed one
    extra             fields that every request has beside the client's own

The line that answers it has the client's own measurements of it: "tokens_per_s" over the whole run, "ttft_s" and
"tpot_s" as means over answers (tpot_s null for answers of one token), "cpu_s_per_token" of this process; or "error"
when a request failed.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Answer lines until there are no more."""
    # What vLLM prints goes to the log.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from vllm.utils.gc_utils import freeze_gc_heap

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    reply(_send(None))
    freeze_gc_heap()  # as the client does when it is a command
    for line in sys.stdin:
        reply(_send(json.loads(line)))


def _send(load: dict[str, Any] | None) -> dict[str, Any]:
    """The answer to a load; None only imports what it takes."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    if load is None:
        return {}
    arrivals_s = load["arrivals_s"]
    requests = [
        SampleRequest(
            prompt=prompt,
            prompt_len=len(prompt),
            expected_output_len=load["tokens"],
            timestamp=None if arrivals_s is None else arrivals_s[number],
        )
        for number, prompt in enumerate(load["prompts"])
    ]
    cpu_s = time.process_time()
    found = asyncio.run(
        benchmark(
            task_type=TaskType.GENERATION,
            endpoint_type="vllm",
            api_url=f"{load['url']}/v1/completions",
            base_url=load["url"],
            model_id=load["model"],
            model_name=load["model"],
            tokenizer=None,
            input_requests=requests,
            logprobs=None,
            request_rate=float("inf"),
            burstiness=1.0,
            disable_tqdm=True,
            num_warmups=0,
            profile=False,
            selected_percentile_metrics=[],
            selected_percentiles=[],
            ignore_eos=True,
            goodput_config_dict={},
            max_concurrency=load["concurrency"],
            lora_modules=None,
            extra_headers=None,
            extra_body={"temperature": 0.0, **load["extra"]},
            ready_check_timeout_sec=0,
            self_timed=arrivals_s is not None,
        )
    )
    cpu_s = time.process_time() - cpu_s
    if found["completed"] < len(requests):
        return {"error": next(filter(None, found["errors"]), "no answer").strip().splitlines()[-1]}
    answers = len(requests)
    # As its `calculate_metrics` has it, with the tokens that were asked for: who calls this compares them with what the
    # server counted.
    tpots_s = [
        (latency_s - ttft_s) / (load["tokens"] - 1)
        for latency_s, ttft_s in zip(found["latencies"], found["ttfts"], strict=True)
        if load["tokens"] > 1
    ]
    return {
        "tokens_per_s": answers * load["tokens"] / found["duration"],
        "ttft_s": sum(found["ttfts"]) / answers,
        "tpot_s": sum(tpots_s) / answers if tpots_s else None,
        "cpu_s_per_token": cpu_s / (answers * load["tokens"]),
    }


if __name__ == "__main__":
    main()
