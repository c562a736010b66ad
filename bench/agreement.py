"""Whether the contenders do the same work: one fp32 step on the same documents by each, in a child process.

The loss is over the same supervised tokens of the same model, so every trainer must get the same number up to
rounding, packed or not. A packed trainer that gets another one lets documents see each other.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.artifact import read_json, write_json
from distill.errors import InputError
from distill.packing.pack import Document, build_pack
from distill.packing.render import Rendering, render
from distill.packing.source import read_traces
from distill.process import child_environment, die_with_parent
from distill.training.padded import build_padded
from distill.training.student import Origin, Student, load_origin

NO_CLIP = 1e9


def measure_agreement(spec: dict[str, Any], folder: Path, threads: int) -> dict[str, dict[str, Any]]:
    """{contender: {"loss", "gradient_norm", "supervised_tokens"}}.

    `spec`: student, traces, pair_ids (of the documents), examples (the same for TRL), row_tokens (they fit in one
    row), contenders, learning_rate, adam_betas. Raises InputError when the child fails.
    """
    path, result = folder / "agreement.spec.json", folder / "agreement.json"
    write_json(path, {**spec, "folder": str(folder), "result": str(result)})
    log = folder / "agreement.log"
    with open(log, "wb") as out:
        code = subprocess.call(
            [sys.executable, "-m", "distill.bench.agreement", str(path)],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=child_environment(threads, {"HF_HUB_OFFLINE": "1"}),
            preexec_fn=die_with_parent,
        )
    if code != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise InputError(f"bench: the comparison of first steps ended with exit code {code} ({' | '.join(lines[-5:])})")
    return read_json(result)


def _ours(spec: dict[str, Any], *, packed: bool) -> dict[str, Any]:
    origin = load_origin(spec["student"], (), packed=packed, vocab_size=262, seed=0)
    documents = _documents(spec, origin)
    student = Student(origin.model).train()
    batch = build_pack(documents) if packed else build_padded(documents, origin.chat.tokenizer.pad_token_id)
    supervised = len(batch.loss_rows)
    loss = student(batch) / supervised
    loss.backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), NO_CLIP)
    return {"loss": float(loss.detach()), "gradient_norm": float(norm), "supervised_tokens": supervised}


def _documents(spec: dict[str, Any], origin: Origin) -> list[Document]:
    pairs = {pair.problem.id: pair for pair in read_traces(Path(spec["traces"])).pairs}
    how = Rendering("teacher", spec["row_tokens"], origin.model.config.vocab_size)
    rendered = render([pairs[name] for name in spec["pair_ids"]], origin.chat, how)
    return rendered.documents[1::2]  # those with reasoning


def _trl(spec: dict[str, Any], name: str) -> dict[str, Any]:
    from distill.bench.peer import Peer, PeerSettings

    packed = name != "trl-padded"
    settings = PeerSettings(
        student=spec["student"],
        packed=packed,
        row_tokens=spec["row_tokens"],
        batch=1 if packed else len(spec["pair_ids"]),
        max_steps=1,
        learning_rate=spec["learning_rate"],
        adam_betas=spec["adam_betas"],
        gradient_clip=NO_CLIP,
        precision="fp32",
        gradient_checkpointing=name == "trl-packed-checkpointed",
    )
    peer = Peer(settings, Path(spec["examples"]), Path(spec["folder"]) / f"agreement-{name}")
    peer.trainer.train()
    first = next(entry for entry in peer.trainer.state.log_history if "grad_norm" in entry)
    counts = peer.counts(0)
    return {
        "loss": float(peer.losses[0]),
        "gradient_norm": float(first["grad_norm"]),
        "supervised_tokens": counts["supervised_tokens"],
    }


def main() -> None:
    """The one argument is a JSON file: the `spec` above, with `folder` to work in and `result` to write."""
    spec = read_json(Path(sys.argv[1]))
    torch.manual_seed(0)
    results = {
        name: _trl(spec, name) if name.startswith("trl") else _ours(spec, packed=name == "packed")
        for name in spec["contenders"]
    }
    write_json(Path(spec["result"]), results)


if __name__ == "__main__":
    main()
