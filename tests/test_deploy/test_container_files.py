"""Dockerfile and compose files, read."""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import __version__
from service.server import _LAST_RESORT_S
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DEVICES = {"cuda": "docker-compose.override.yml", "cpu": "docker-compose.cpu.yml"}


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return document


SERVICES: dict[str, dict[str, Any]] = compose()["services"]


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined) if word]


def final_stage() -> dict[str, str]:
    """Return the last argument of each instruction behind the last FROM."""
    words = [word for word, _ in instructions()]
    last = len(words) - 1 - words[::-1].index("FROM")
    return dict(instructions()[last:])


def image_settings() -> dict[str, Any]:
    return dict(pair.split("=", 1) for pair in final_stage()["ENV"].split() if PREFIX in pair)


def pinned(image: str) -> bool:
    """Whether the image has a tag with a version in it."""
    _, colon, tag = image.rpartition(":")
    return bool(colon) and re.search(r"\d+\.\d+", tag) is not None


def test_the_final_stage_has_no_compiler_and_starts_from_the_base_alone() -> None:
    bases = [rest for word, rest in instructions() if word == "FROM"]
    defaults = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")

    assert bases == ["${BASE} AS build", "${BASE}"]
    assert pinned(defaults["BASE"])
    assert "apt-get" not in final_stage()["RUN"]


def test_the_image_runs_as_a_numbered_user_and_stops_on_sigterm() -> None:
    user = final_stage()["USER"]

    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)  # Kubernetes needs numbers
    assert final_stage()["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD"])
def test_the_command_is_no_shell_that_would_swallow_signals(name: str) -> None:
    assert isinstance(json.loads(final_stage()[name]), list)


def test_the_image_sets_only_settings_that_exist_and_good_values() -> None:
    values = image_settings()

    settings = Settings(**{name.removeprefix(PREFIX).lower(): x for name, x in values.items()})
    assert settings.host == "0.0.0.0"


def test_stopping_takes_less_than_dockers_patience() -> None:
    patience_s = 10  # of docker stop and of Compose, unless told otherwise
    values = image_settings()
    settings = Settings(shutdown_timeout_s=float(values[f"{PREFIX}SHUTDOWN_TIMEOUT_S"]))

    assert all("stop_grace_period" not in service for service in SERVICES.values())
    assert settings.drain_delay_s + settings.shutdown_timeout_s + _LAST_RESORT_S < patience_s


def test_the_health_check_asks_readyz_without_a_shell() -> None:
    command = json.loads(final_stage()["HEALTHCHECK"].partition(" CMD ")[2])

    assert command[0] == "python"
    compile(command[-1], "health check", "exec")
    assert "/readyz" in command[-1]


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", "README.md", "LICENSE"])
def test_what_the_image_is_made_of_is_sent_to_the_build(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    assert f"!{name}" in ignored


@pytest.mark.parametrize("name", ["data/train", "runs/train", ".git", ".venv", ".env", "tests"])
def test_what_is_big_or_secret_is_not_sent_to_the_build(name: str) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]

    assert "*" in lines
    assert not any(fnmatch.fnmatch(name.split("/")[0], pattern) for pattern in kept)


def test_every_image_is_pinned_and_ours_is_named_after_our_version() -> None:
    tag = f"${{IMAGE_TAG:-{__version__}}}"  # of a build between releases: docs/versions.md

    assert all(pinned(x["image"]) for name, x in SERVICES.items() if name != "world-model")
    for device, name in DEVICES.items():
        ours = compose(name)["services"]["world-model"]
        assert ours["image"] == f"world-model:{tag}-{device}"
        assert ours["build"]["args"]["VERSION"] == tag
        assert ours["build"]["args"]["DEVICE"] == device
        assert ours["environment"]["WORLD_MODEL_DEVICE"] == device


def test_the_image_is_labelled_with_our_version() -> None:
    stage = final_stage()

    assert f"VERSION={__version__}" in stage["ARG"]
    assert "org.opencontainers.image.version=$VERSION" in stage["LABEL"].split()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback_by_default(name: str) -> None:
    for port in SERVICES[name]["ports"]:
        assert re.fullmatch(r"(127\.0\.0\.1|\$\{BIND_ADDRESS:-127\.0\.0\.1\}):\d+:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_limited_restarted_and_without_privileges(name: str) -> None:
    service = SERVICES[name]

    assert {"cpus", "mem_limit", "pids_limit"} <= service.keys()
    assert service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "max-size" in service["logging"]["options"]


@pytest.mark.parametrize("name", SERVICES)
def test_our_files_cannot_be_written_from_a_container(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        assert volume.endswith(":ro") == volume.startswith("./"), volume


def test_services_start_when_what_they_need_is_healthy() -> None:
    assert SERVICES["prometheus"]["depends_on"] == {"world-model": {"condition": "service_healthy"}}
    assert SERVICES["grafana"]["depends_on"] == {"prometheus": {"condition": "service_healthy"}}
    assert "HEALTHCHECK" in final_stage()
    assert all("healthcheck" in x for name, x in SERVICES.items() if name != "world-model")


def test_the_service_has_a_root_that_cannot_be_written() -> None:
    assert SERVICES["world-model"]["read_only"] is True
    assert SERVICES["world-model"]["tmpfs"] == ["/tmp"]


def test_only_the_file_for_gpus_reserves_one() -> None:
    def devices(name: str) -> Any:
        service = compose(name)["services"]["world-model"]
        return service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")

    assert devices(DEVICES["cuda"]) == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert devices("docker-compose.yml") is None  # a later file could not take it back
    assert devices(DEVICES["cpu"]) is None


def test_compose_passes_only_settings_that_exist() -> None:
    for document in (compose(), *map(compose, DEVICES.values())):
        for variable in document["services"]["world-model"].get("environment", {}):
            if not variable.startswith("OTEL_"):  # those are not ours to name
                assert variable.removeprefix(PREFIX).lower() in Settings.model_fields


def composed(folder: Path, device: str, dotenv: str | None) -> subprocess.CompletedProcess[str]:
    """Have Compose read the files as they are in a folder of their own, with this `.env`."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("needs docker-compose")
    for name in ("docker-compose.yml", *DEVICES.values()):
        shutil.copy(ROOT / name, folder)
    if dotenv is not None:
        (folder / ".env").write_text(dotenv)
    files = ("-f", "docker-compose.yml", "-f", DEVICES[device])
    return subprocess.run([program, *files, "config"], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("device", DEVICES)
def test_compose_accepts_the_files_with_the_example_of_their_env(
    tmp_path: Path, device: str
) -> None:
    result = composed(tmp_path, device, (ROOT / ".env.example").read_text())

    assert result.returncode == 0, result.stderr


def test_every_line_of_env_reaches_the_service_even_a_misspelt_one(tmp_path: Path) -> None:
    result = composed(tmp_path, "cpu", "WORLD_MODEL_API_KEY=sesame\nWORLD_MODEL_MAX_ROWS=512\n")

    environment = yaml.safe_load(result.stdout)["services"]["world-model"]["environment"]
    assert environment["WORLD_MODEL_API_KEY"] == "sesame"
    assert environment["WORLD_MODEL_MAX_ROWS"] == "512"


def test_without_env_compose_does_not_begin(tmp_path: Path) -> None:
    result = composed(tmp_path, "cpu", None)

    assert result.returncode != 0
    assert ".env" in result.stderr


def test_the_service_reads_all_of_env() -> None:
    assert SERVICES["world-model"]["env_file"] == ".env"
    assert all("env_file" not in x for name, x in SERVICES.items() if name != "world-model")


def test_the_example_of_env_names_only_what_exists() -> None:
    named = re.findall(r"^#? ?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}

    assert len(named) > 3
    assert set(named) <= settings | {"COMPOSE_FILE", "BIND_ADDRESS"}


def test_the_systemd_unit_sets_good_values_and_waits_for_the_end() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    text = (ROOT / "deploy" / "systemd" / "world-model.service").read_text()
    unit.read_string(text)
    pairs = re.findall(rf"^Environment={PREFIX}(\w+)=(.*)$", text, re.MULTILINE)

    settings = Settings(**{name.lower(): value for name, value in pairs})
    service = unit["Service"]
    longest_s = settings.drain_delay_s + settings.shutdown_timeout_s + _LAST_RESORT_S
    assert longest_s < float(service["TimeoutStopSec"])
    assert service["ExecStart"].endswith("/world-model serve")
    assert service["EnvironmentFile"] == "/etc/world-model.env"
    assert str(settings.cache_dir) == f"/var/cache/{service['CacheDirectory']}"
    assert service["CacheDirectoryMode"] == "0700"
