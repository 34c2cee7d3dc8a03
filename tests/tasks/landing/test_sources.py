"""What has landed for a recipe, from the registry and the store, and what is remembered of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.errors import ConfigError, ModelError, StoreError, TrainingInterruptedError
from tasks.landing.files import fetch_source
from tasks.landing.quarantine import read_records, record_source, release_source
from tasks.landing.sources import LandedSource, land_source, list_landed
from tasks.landing.take_in import is_fault_of_source
from tasks.settings import Settings
from tasks.store.contents import read_contents
from tasks.store.interface import ObjectInfo, Store
from tasks.store.local_cache import open_cache
from tasks.store.owners import is_abandoned
from tasks.store.workplace import Workplace, open_workplace

STORIES = Path(__file__).resolve().parents[2] / "data" / "stories260k"


@pytest.fixture
def workplace(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    settings = Settings()
    return Workplace(settings, store, open_cache(settings))


def recipe(**refusion: object) -> FusionConfig:
    return FusionConfig.model_validate(
        {
            "name": "small",
            "pivot": {"name": "pivot", "hub": "someone/pivot"},
            "sources": [{"name": "own", "hub": "someone/own"}],
            "dialogues": {"files": [{"path": "dialogues.jsonl"}]},
            "refusion": refusion,
        }
    )


def put_checkpoint(store: Store, key: str, *, whole: bool = True) -> None:
    for path in sorted(STORIES.iterdir()):
        store.upload(f"{key}/{path.name}", path)
    if whole:
        store.write(f"{key}/_SUCCESS", b"")


def test_a_folder_of_the_store_lands_with_its_marker(workplace: Workplace) -> None:
    store, config = workplace.store, recipe(look_in=["store"])
    put_checkpoint(store, "sources/small/maths", whole=False)
    assert [source.name for source in list_landed(workplace, config)] == ["own"]
    put_checkpoint(store, "sources/small/maths")
    own, landed = list_landed(workplace, config)
    assert (own.origin, landed.name, landed.origin) == ("recipe", "maths", "store")
    folder = Path(str(fetch_source(workplace, config, landed).path))
    assert (folder / "model.safetensors").read_bytes() == (STORIES / "model.safetensors").read_bytes()
    # No part of it counts as an unfinished publication, which garbage collection would delete after a day.
    assert read_contents(store).unfinished == ()


def test_names_are_made_distinct_and_order_is_that_of_landing(workplace: Workplace) -> None:
    store, config = workplace.store, recipe(look_in=["store"])
    for name in ("own", "pivot"):
        put_checkpoint(store, f"sources/small/{name}")
    names = [source.name for source in list_landed(workplace, config)]
    assert names[0] == "own"
    assert len(set(names)) == 3
    assert {name.rpartition("-")[0] for name in names[1:]} == {"own", "pivot"}


def test_a_source_that_a_person_gives_lands_once(workplace: Workplace) -> None:
    config = recipe(look_in=["store"], store_folder="shared")
    given = ModelConfig(name="chat", hub="someone/chat", revision="main")
    for _ in range(2):
        land_source(workplace, config, given)
    landed = list_landed(workplace, config)[1]
    assert fetch_source(workplace, config, landed) == given
    with pytest.raises(ConfigError, match="another name"):
        land_source(workplace, config, given.model_copy(update={"revision": "other"}))
    with pytest.raises(ConfigError, match="look_in"):
        land_source(workplace, recipe(look_in=[]), given)


def test_what_became_of_a_source_is_remembered_until_it_is_released(workplace: Workplace) -> None:
    config = recipe(look_in=["store"])
    put_checkpoint(workplace.store, "sources/small/maths")
    landed = list_landed(workplace, config)[1]
    with pytest.raises(ConfigError, match="not in quarantine"):
        release_source(workplace, config, landed)
    record_source(workplace, config, landed, "quarantined", "it knows nothing", "ab" * 32)
    record = read_records(workplace.store, config)[landed.reference]
    assert (record.state, record.reason) == ("quarantined", "it knows nothing")
    release_source(workplace, config, landed)
    assert read_records(workplace.store, config) == {}


def test_a_folder_without_a_checkpoint_is_the_sources_fault(workplace: Workplace, tmp_path: Path) -> None:
    config = recipe(look_in=["store"])
    workplace.store.write("sources/small/maths/readme.txt", b"nothing yet")
    workplace.store.write("sources/small/maths/_SUCCESS", b"")
    with pytest.raises(ModelError, match=r"config\.json"):
        fetch_source(workplace, config, list_landed(workplace, config)[1])


def test_weights_in_mlflows_own_layout_are_found(workplace: Workplace, tmp_path: Path) -> None:
    config = recipe(look_in=["store"])
    for part, names in {
        "model": ("config.json", "model.safetensors"),
        "components/tokenizer": ("tokenizer.json",),
    }.items():
        (tmp_path / "flavour" / part).mkdir(parents=True)
        for name in names:
            shutil.copy(STORIES / name, tmp_path / "flavour" / part / name)
    landed = list_landed(workplace, config)[0].model_copy(
        update={"origin": "registry", "model": None, "files": (tmp_path / "flavour").as_uri()}
    )
    folder = Path(str(fetch_source(workplace, config, landed).path))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


FETCH_AND_DIE = """
import os, signal, sys
from tasks.landing import files
from tests.tasks.landing.test_sources import flavour_of, recipe
from tasks.landing.files import fetch_source
from tasks.store.workplace import open_workplace

def die(path, to):
    to.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

files.link_or_copy = die
workplace = open_workplace()
fetch_source(workplace, recipe(look_in=["store"]), flavour_of(workplace, sys.argv[1]))
"""


def flavour_of(workplace: Workplace, address: str) -> LandedSource:
    """A version in the registry whose files are at an address."""
    own = list_landed(workplace, recipe(look_in=["store"]))[0]
    return own.model_copy(update={"origin": "registry", "model": None, "files": address})


def test_what_a_killed_fetch_left_goes_with_the_next(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    workplace = open_workplace()
    (tmp_path / "flavour" / "components" / "tokenizer").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(STORIES / name, tmp_path / "flavour" / name)
    shutil.copy(STORIES / "tokenizer.json", tmp_path / "flavour" / "components" / "tokenizer")
    address = (tmp_path / "flavour").as_uri()
    command = [sys.executable, "-c", FETCH_AND_DIE, address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    (left,) = workplace.settings.sources_folder.iterdir()
    assert is_abandoned(left.name)
    folder = Path(str(fetch_source(workplace, recipe(look_in=["store"]), flavour_of(workplace, address)).path))
    assert (folder / "model.safetensors").read_bytes() == (STORIES / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert list(workplace.settings.sources_folder.iterdir()) == [folder]


def test_only_a_models_own_faults_put_it_in_quarantine() -> None:
    unreachable = ModelError("Model 'a' cannot be fetched from the hub.")
    unreachable.__cause__ = httpx.ConnectError("no network")
    assert is_fault_of_source(ModelError("NaN"))
    for innocent in (unreachable, StoreError("down"), TrainingInterruptedError("SIGTERM"), MemoryError()):
        assert not is_fault_of_source(innocent)


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b" " * (2 << 20), b'{"name": "../x", "hub": "a/b"}', b'{"name": "two"}']
)
def test_settings_that_cannot_be_read_are_that_sources_fault_alone(workplace: Workplace, content: bytes) -> None:
    config = recipe(look_in=["store"])
    workplace.store.write("sources/small/bad.json", content)
    workplace.store.write("sources/small/good.json", b'{"name": "good", "hub": "someone/good"}')
    landed = {source.name: source for source in list_landed(workplace, config)}
    assert set(landed) == {"own", "bad", "good"}
    with pytest.raises(ModelError, match=r"sources/small/bad\.json"):
        fetch_source(workplace, config, landed["bad"])
    assert str(fetch_source(workplace, config, landed["good"]).hub) == "someone/good"


def test_a_listed_key_that_leads_out_makes_no_folder(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe(look_in=["store"])
    put_checkpoint(workplace.store, "sources/small/maths")
    landed = list_landed(workplace, config)[1]
    key = ObjectInfo("sources/small/maths/../../out/config.json", 2, 0.0)
    monkeypatch.setattr(type(workplace.store), "list", lambda self, prefix="": iter([key]))
    monkeypatch.setattr(type(workplace.store), "local_path", lambda self, key: None)
    with pytest.raises(StoreError, match="cannot be a key"):
        fetch_source(workplace, config, landed)
    assert list((workplace.settings.home / "sources").iterdir()) == []
