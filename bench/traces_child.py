"""vLLM's own offline generation in a process of its own. `python -m distill.bench.traces_child VLLM-ARGUMENTS...`

A line on standard input is a list of requests as the teacher renders them; the line that answers it says how long all
of them took and how many tokens were made. `enqueue_chat` and `wait_for_completion` are the halves of `LLM.chat`, which
takes one set of template arguments a call: so both modes are generated together.
"""

import json
import os
import sys
import time
from itertools import groupby


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

    def reply(value: dict) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    reply({})
    for line in sys.stdin:
        requests, tokens = json.loads(line), 0
        start = time.perf_counter()
        for kwargs, group in groupby(requests, key=lambda request: request["chat_template_kwargs"]):
            same = list(group)
            sampling = [
                SamplingParams(
                    **{name: request[name] for name in ("max_tokens", "temperature", "top_p", "seed")}, ignore_eos=True
                )
                for request in same
            ]
            messages = [request["messages"] for request in same]
            llm.enqueue_chat(messages, sampling, chat_template_kwargs=kwargs, use_tqdm=False)
        for output in llm.wait_for_completion(use_tqdm=False):
            tokens += len(output.outputs[0].token_ids)
        reply({"seconds": time.perf_counter() - start, "tokens": tokens})


if __name__ == "__main__":
    main(sys.argv[1:])
