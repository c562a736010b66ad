"""The process of `offline.py`. `python -m distill.bench.offline_child VLLM-ARGUMENTS...`

A line on standard input is a list of requests; the line that answers it says how long all of them took and how many
tokens were made. They are queued and then waited for, which are the halves of `LLM.generate` and of `LLM.chat`: the
latter takes one set of template arguments a call, and so requests of several sets are generated together.
"""

import json
import os
import sys
import time
from itertools import groupby
from typing import Any


def main(arguments: list[str]) -> None:
    """Answer lines until there are no more."""
    # What vLLM prints goes to the log.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(parser.parse_args(arguments)))

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    def enqueue(requests: list[dict[str, Any]], template: dict[str, Any] | None) -> None:
        """Requests of one kind: all token ids, or all messages with these template arguments."""
        key = "messages" if "messages" in requests[0] else "prompt_token_ids"
        prompts = [request.pop(key) for request in requests]
        sampling = [SamplingParams(**request) for request in requests]
        if key == "messages":
            llm.enqueue_chat(prompts, sampling, chat_template_kwargs=template, use_tqdm=False)
        else:
            llm.enqueue([{key: prompt} for prompt in prompts], sampling, use_tqdm=False)

    reply({})
    for line in sys.stdin:
        requests = json.loads(line)
        start = time.perf_counter()
        kinds = [("messages" in request, request.pop("chat_template_kwargs", None)) for request in requests]
        for (_, template), group in groupby(zip(kinds, requests, strict=True), key=lambda pair: pair[0]):
            enqueue([request for _, request in group], template)
        tokens = sum(len(output.outputs[0].token_ids) for output in llm.wait_for_completion(use_tqdm=False))
        reply({"seconds": time.perf_counter() - start, "tokens": tokens})


if __name__ == "__main__":
    main(sys.argv[1:])
