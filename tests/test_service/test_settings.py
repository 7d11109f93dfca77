from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import PRETRAINED, Settings, explain_settings_error


def test_defaults_serve_the_bundled_model_on_loopback() -> None:
    settings = Settings()

    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.checkpoint == PRETRAINED
    assert Path(__file__).parents[2] / "models" / "pretrained" == PRETRAINED
    assert settings.keys() == ()


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_MODEL_PORT", "9000")
    monkeypatch.setenv("WORLD_MODEL_API_KEYS", " one, two ,,")

    assert Settings().port == 9000
    assert Settings().keys() == ("one", "two")


def test_settings_are_frozen_and_keys_stay_secret() -> None:
    settings = Settings(api_keys="hush")

    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    assert "hush" not in repr(settings)


def test_every_setting_has_a_default_and_explains_itself() -> None:
    for name, field in Settings.model_fields.items():
        assert not field.is_required(), name
        assert len(field.description or "") > 40, name


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"port": "http"},
            "Bad value 'http' for the setting WORLD_MODEL_PORT: input should be a valid integer, "
            "unable to parse string as an integer.",
        ),
        (
            {"port": 70000},
            "Bad value 70000 for the setting WORLD_MODEL_PORT: input should be less than or "
            "equal to 65535.",
        ),
        (
            {"device": "tpu"},
            "Bad value 'tpu' for the setting WORLD_MODEL_DEVICE: input should be 'auto', 'cpu' "
            "or 'cuda'.",
        ),
        ({"prot": 1}, "There is no setting 'prot'; the nearest one is 'port'."),
        (
            {"queue_rows_safety": 10},
            "Bad settings: queue_rows_safety (10) must be at least max_rows (4096), or the "
            "biggest request could never be accepted.",
        ),
        (
            {"default_timeout_s": 10, "max_timeout_s": 5},
            "Bad settings: default_timeout_s (10.0) must not exceed max_timeout_s (5.0).",
        ),
        (
            {"canary_interval_s": 20},
            "Bad settings: readiness_max_age_s (15.0) must exceed canary_interval_s (20.0), or "
            "an idle service is not ready.",
        ),
    ],
)
def test_a_bad_value_is_explained_in_one_sentence(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**given)  # type: ignore[arg-type]

    assert explain_settings_error(caught.value) == sentence


def test_a_bad_key_is_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(api_keys=["hush"])

    assert "hush" not in explain_settings_error(caught.value)
