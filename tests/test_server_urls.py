"""URLs of servers are kept in files and shown: none that says who asks gets that far."""

import pytest

from distill.errors import InputError
from distill.evaluation.endpoint import ModelSettings
from distill.serve.judge import JudgeSettings
from distill.settings import validate
from distill.study.rows import TeacherRow
from distill.traces.teachers.settings import EndpointSettings

MODELS = (ModelSettings, JudgeSettings, TeacherRow, EndpointSettings)


@pytest.mark.parametrize("model", MODELS)
def test_a_password_in_a_url_is_refused_and_not_repeated(model, rng):
    secret = f"word{rng.integers(10**9)}"
    for who in (f"me:{secret}@", f"{secret}@", f":{secret}@", f"me:p@{secret}@"):
        with pytest.raises(InputError, match=r"^a file: a URL at h:8000 with user name or password") as refused:
            validate(model, {"url": f"https://{who}h:8000/v1", "model": "m"}, source="a file")
        assert secret not in str(refused.value)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_no_url_is_named(model):
    for url in ("h:8000/v1", "ftp://h/v1", "http://", "", "/v1", "http://[::1/v1"):
        with pytest.raises(InputError, match=r"^a file: field url: .*URL"):
            validate(model, {"url": url, "model": "m"}, source="a file")
    for url in ("http://127.0.0.1:8000/v1", "https://h/a@b/v1", "http://[::1]:8000/v1"):
        assert validate(model, {"url": url, "model": "m"}, source="a file").url == url
