"""Values and variables that parse and mean nothing stop the start, with a sentence."""

from __future__ import annotations

import math
import os
import string
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.setting_checks import check_keys, check_variables, keys_in
from service.settings import PREFIX, Settings, explain_settings_error
from service.telemetry.requests import NO_KEY, UNKNOWN_KEY

FIELDS = Settings.model_fields


def refusal(**given: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings(**given)
    return explain_settings_error(caught.value)


def set_variables(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("WORLD_MODEL_API_KEY", "WORLD_MODEL_API_KEYS"),
        ("WORLD_MODEL_APIKEYS", "WORLD_MODEL_API_KEYS"),
        ("world_model_api_key", "WORLD_MODEL_API_KEYS"),
        ("World_Model_Api_Key", "WORLD_MODEL_API_KEYS"),
        ("WORLD_MODEL__API_KEYS", "WORLD_MODEL_API_KEYS"),
        ("WORLD_MODEL_API_KEYS ", "WORLD_MODEL_API_KEYS"),
        ("WORLD_MODEL_DEFAULT_TIMEOUT", "WORLD_MODEL_DEFAULT_TIMEOUT_S"),
        ("WORLD_MODEL_MAX_BODY", "WORLD_MODEL_MAX_BODY_BYTES"),
        ("WORLD_MODEL_HOSTS", "WORLD_MODEL_HOST"),
        ("WORLD_MODEL_LAUNCH_WORK", ""),
        ("WORLD_MODEL_", ""),
        ("WORLD_MODEL_X_PORT", ""),
    ],
)
def test_a_variable_that_is_no_setting_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, near: str
) -> None:
    monkeypatch.setenv(variable, "sesame")

    sentence = refusal()

    assert f"no setting {variable}, and" in sentence
    assert sentence.endswith(f"the nearest one is {near}." if near else ".")
    assert "sesame" not in sentence


@given(name=st.sampled_from(sorted(FIELDS)), data=st.data())
def test_a_setting_is_read_in_any_case(name: str, data: st.DataObject) -> None:
    """An empty value is refused by every setting, so one that is passed over shows."""
    letters = [data.draw(st.sampled_from([x.upper(), x.lower()])) for x in f"{PREFIX}{name}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("".join(letters), "")

        sentence = refusal()

    assert f"for the setting {PREFIX}{name.upper()}: " in sentence


def test_two_spellings_of_a_setting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, WORLD_MODEL_PORT="8000", world_model_port="9000")

    assert "WORLD_MODEL_PORT and world_model_port are the same setting" in refusal()


KUBERNETES = {
    "WORLD_MODEL_SERVICE_HOST": "10.0.0.1",
    "WORLD_MODEL_SERVICE_PORT": "8000",
    "WORLD_MODEL_SERVICE_PORT_HTTP": "8000",
    "WORLD_MODEL_SERVICE_PORT_METRICS_2": "9000",
    **{
        f"WORLD_MODEL_PORT_8000_{protocol}{suffix}": "x"
        for protocol in ("TCP", "UDP", "SCTP")
        for suffix in ("", "_PROTO", "_PORT", "_ADDR")
    },
    # Of other Services in the namespace, world-model-grafana for one.
    "WORLD_MODEL_GRAFANA_SERVICE_HOST": "10.0.0.2",
    "WORLD_MODEL_GRAFANA_SERVICE_PORT": "3000",
    "WORLD_MODEL_GRAFANA_PORT": "tcp://10.0.0.2:3000",
    "WORLD_MODEL_GRAFANA_PORT_3000_TCP_ADDR": "10.0.0.2",
}


def test_what_kubernetes_injects_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, **KUBERNETES)

    assert Settings() == Settings.model_construct()


@pytest.mark.parametrize("link", ["tcp://10.0.0.1:8000", "udp://[fd00::1]:8000", "sctp://a:1"])
def test_kubernetes_port_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    set_variables(monkeypatch, **KUBERNETES, WORLD_MODEL_PORT=link)

    sentence = refusal()

    assert f"'{link}' for the setting WORLD_MODEL_PORT" in sentence
    assert "Kubernetes injects for a Service named world-model" in sentence
    assert "enableServiceLinks: false" in sentence
    assert "name the Service otherwise" in sentence
    assert Settings(port=9000).port == 9000  # an option wins


def test_only_the_prefix_is_ours() -> None:
    others = {"PORT": "x", "MY_WORLD_MODEL_PORT": "x", "WORLDMODEL_X": "x", "WORLD_MODEL": "x"}

    check_variables(others, PREFIX, FIELDS)


BAD_KEYS = {
    "empty": "",
    "blanks": " \t\n",
    "commas": ",, ,",
    "a space inside": "sesame open",
    "a line end inside": "sesame-1\nsesame-2",
    "a scheme before it": "Bearer sesame",
    "a control character": "sesame\x01",
    "DEL": "\x7fsesame",
    "beyond ASCII": "sésame-sesame",
    "an unseen blank": "sesame\u200b",
    "half a character": "sesame\ud800",
    "longer than heads may be": "sesame" * 1000,
    "the second one": "a-good-sesame-of-23-char,sesame open",
    "a list of JSON": '["sesame-1","sesame-2"]',
    "a list of one": "[sesame]",
    "quotes": '"sesame"',
    "quotes of a shell": "'sesame-1','sesame-2'",
    "quotes of another kind": "`sesame`",
    "an object": "{sesame}",
    "a name without a key": "sesame:",
    "a name of digits": "5esame:a-good-key-of-23-chars",
    "an empty name": ":sesame",
    "a name with a blank": "sesame one:sesame",
    "a name of 33 letters": f"{'n' * 33}:sesame",
    "a name that stands for no key": f"{NO_KEY}:sesame",
    "a name that stands for unknown keys": f"{UNKNOWN_KEY}:sesame",
    "a name that others may get by their place": "key-2:sesame",
    "a key with two names": "a:sesame,b:sesame",
    "a key with a name and without": "sesame,a:sesame",
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("one", {"one": "key-1"}),
        ("one, two ,,", {"one": "key-1", "two": "key-2"}),
        ("a:one,two,a:three", {"one": "a", "two": "key-2", "three": "a"}),
        ("A.b_c-9:one:two", {"one:two": "A.b_c-9"}),
        ("c2VjcmV0==", {"c2VjcmV0==": "key-1"}),
    ],
)
def test_keys_have_names_that_give_nothing_of_them_away(text: str, names: dict[str, str]) -> None:
    given: dict[str, Any] = {"api_keys": text}
    settings = Settings(**given)

    assert settings.key_names() == names
    assert settings.keys() == tuple(names)


@pytest.mark.parametrize("keys", BAD_KEYS.values(), ids=BAD_KEYS)
def test_keys_that_no_request_can_carry_stop_the_start(keys: str) -> None:
    sentence = refusal(api_keys=keys)

    assert sentence.startswith("Bad value for the setting WORLD_MODEL_API_KEYS: ")
    assert "sesame" not in sentence


@given(st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8)))
def test_keys_are_read_as_written_each_once(given: list[str]) -> None:
    text = ",".join(given)
    kept = [key.strip() for part in given for key in part.split(",") if key.strip()]

    assert keys_in(text) == tuple(dict.fromkeys(kept))
    allowed = set(string.printable) - set(string.whitespace) - set("[]{}\"'`:")
    if kept and all(set(key) <= allowed for key in kept):
        check_keys(keys_in(text))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:80", "localhost:80", "[::1]", "http://a", "a b", " ", "", "a/b", "ä", "*", "a\n"],
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    assert "setting WORLD_MODEL_HOST: must be an IP address or a host name" in refusal(host=host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "a-b.example", "my_host", "0"]
)
def test_a_host_that_may_be_one_is_taken(host: str) -> None:
    assert Settings(host=host).host == host


@pytest.mark.parametrize("name", ["checkpoint", "cache_dir"])
@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_a_path_that_names_no_folder_is_refused(name: str, path: str) -> None:
    assert f"setting WORLD_MODEL_{name.upper()}: must name a folder" in refusal(**{name: path})
    given: dict[str, Any] = {name: Path("some where")}
    assert getattr(Settings(**given), name) == Path("some where")


NUMBERS = [name for name, field in FIELDS.items() if field.annotation in (int, float)]
NUMBERS.append("members")


def bounds(name: str) -> tuple[float, float]:
    metadata = FIELDS[name].metadata
    low = [x.ge if isinstance(x, Ge) else x.gt for x in metadata if isinstance(x, Ge | Gt)]
    high = [x.le if isinstance(x, Le) else x.lt for x in metadata if isinstance(x, Le | Lt)]
    (lowest,), (highest,) = low, high
    assert isinstance(lowest, int | float)
    assert isinstance(highest, int | float)
    return lowest, highest


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_both_bounds_and_is_finite(name: str) -> None:
    low, high = bounds(name)
    assert math.isfinite(low)
    assert math.isfinite(high)
    beyond = [low - 1, high + 1, math.nan, math.inf, -math.inf]
    for bad in [*beyond, *map(str, beyond), "1e999", "", "x" * 500]:
        sentence = refusal(**{name: bad})
        assert f"for the setting WORLD_MODEL_{name.upper()}: " in sentence
        assert len(sentence) < 300


def test_numbers_too_small_to_work_with_are_refused() -> None:
    for name in ("default_timeout_s", "max_timeout_s", "canary_interval_s", "readiness_max_age_s"):
        assert "greater than or equal to" in refusal(**{name: 1e-9})


def test_the_environment_is_this_tests_own() -> None:
    assert not [name for name in os.environ if name.lower().startswith("world_model")]
