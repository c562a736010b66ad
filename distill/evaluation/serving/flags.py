"""Loads, prices and servers as the command line writes them."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.evaluation.endpoint import ModelSettings
from distill.evaluation.server import Serving
from distill.evaluation.serving.compare import Entrant
from distill.evaluation.serving.pricing import PriceSettings
from distill.serve import Endpoint
from distill.serve.load.arrivals_file import read_replay
from distill.serve.objective import read_objective
from distill.settings import validate


def load_values(
    concurrency: str | None,
    rate: str | None,
    burstiness: float,
    replay: Path | None,
    speed: float,
    *,
    saturate: bool,
    objective: str | None,
) -> dict[str, Any]:
    """Values for `StudentProfileSettings`. Raises InputError."""
    if replay is None and speed != 1.0:
        raise InputError("--speed: only with --replay")
    if burstiness != 1.0 and rate is None and not saturate:
        raise InputError("--burstiness: only with --rate or --saturate")
    return {
        "concurrencies": concurrency.split(",") if concurrency else (),
        "rates": rate.split(",") if rate else (),
        "burstiness": burstiness,
        "replay": None if replay is None else read_replay(replay, speed=speed),
        "saturate": saturate,
        "objective": None if objective is None else read_objective(objective),
    }


def price_values(hardware: str | None, **others: Any) -> dict[str, Any]:
    """The same of `price`. Raises InputError for a price of nothing."""
    given = {name: value for name, value in others.items() if value is not None}
    if hardware is None and given:
        raise InputError(f"--{next(iter(given)).replace('_', '-')}: needs --hardware, a row of hardware.yaml")
    return {"price": None if hardware is None else {"hardware": hardware, **given}}


def remote_of(endpoint: str | None, model: str | None, api_key_env: str, serving: Serving) -> ModelSettings | None:
    """The server that is there already, if there is one. Raises InputError; `serving` is how one is started here."""
    if (endpoint is None) != (model is None):
        raise InputError("--endpoint and --model are given together or not at all")
    if endpoint is None:
        return None
    ours = {
        "--threads": serving.threads,
        "--port": serving.port,
        "-- " + " ".join(serving.arguments): serving.arguments,
    }
    for name, value in ours.items():
        if value:
            raise InputError(f"{name}: not with --endpoint, whose server was started elsewhere")
    who = {"url": endpoint, "model": model, "api_key_env": api_key_env}
    return validate(ModelSettings, who, source="command line")


def entrants(
    students: Sequence[str], endpoints: Sequence[str], api_key_env: str, *, ours: Serving, price: dict | None
) -> list[Entrant]:
    """The two students of a comparison: FOLDER or NAME=FOLDER, each with its server, one of `ours` where no endpoints
    are named, and its price. Raises InputError."""
    if endpoints and len(endpoints) != len(students):
        raise InputError(f"--endpoint: found {len(endpoints)}, expected {len(students)}: the server of A and that of B")
    given = str((price or {}).get("fixed_usd", "0")).split(",")
    fixed_usd = given * len(students) if len(given) == 1 else given
    if len(fixed_usd) != len(students):
        raise InputError(f"--fixed-usd: found {len(fixed_usd)} amounts, expected one, or one for each student")
    found = []
    for place, text in enumerate(students):
        name, equals, rest = text.partition("=")
        named = bool(name and equals and rest) and not Path(text).exists()
        folder = Path(rest if named else text)
        serving, remote = ours, None
        if endpoints:
            url, hash_, model = endpoints[place].rpartition("#")
            if not (url and hash_ and model):
                raise InputError(f"--endpoint {endpoints[place]}: expected URL#MODEL")
            remote = remote_of(url, model, api_key_env, ours)
            serving = Serving(partial(endpoint_of, remote))
        charged = None
        if price is not None:
            values = {**price, "fixed_usd": fixed_usd[place]}
            charged = validate(PriceSettings, values, source="command line")
        found.append(Entrant(name if named else folder.resolve().name, folder, serving, charged, remote))
    return found


def endpoint_of(remote: ModelSettings) -> Endpoint:
    """With the key from the environment."""
    return Endpoint(remote.url, remote.model, os.environ.get(remote.api_key_env))
