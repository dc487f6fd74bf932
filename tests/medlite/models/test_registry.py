"""Names: a catalogue name or a repository opens the one artifact that is here, and says what brings one that is not."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

import medlite
from medlite.cli.fit import command as fit
from medlite.cli.models import command as models
from medlite.cli.quantize import output_path
from medlite.errors import ArtifactError
from medlite.models.catalog import find_model, read_catalog, recognise
from medlite.models.registry import (
    FILE_NAME,
    FOLDERS,
    artifacts_of,
    remember_folders,
    remembered_folders,
    resolve_model,
)
from quantize.gguf.recipes import RECIPES
from tests.helpers.tiny_gguf import write_tiny_gguf

NAME = "llama3-med42-8b"


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, hub cache and current folder."""
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def put(tiny: Path, path: Path, source: str = "") -> Path:
    """An artifact at `path`, with a receipt that names `source`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tiny, path)
    if source:
        path.with_name(path.name + ".receipt.json").write_text(json.dumps({"source": {"name": source}}))
    return path.resolve()


def failure(name: str) -> ArtifactError:
    with pytest.raises(ArtifactError) as refused:
        resolve_model(name)
    return refused.value


@pytest.mark.parametrize("name", list(read_catalog()))
def test_a_model_that_is_not_here_is_said_with_the_commands_that_bring_it(name: str) -> None:
    refused = failure(name)
    assert "not on this machine" in str(refused)
    assert refused.hint is not None
    assert refused.hint.endswith(f"medlite quantize {name} --recipe Q4_K_M")
    assert (f"medlite pull {name}" in refused.hint) == bool(read_catalog()[name].repository)


@pytest.mark.parametrize("name", [n for n, model in read_catalog().items() if model.repository])
def test_what_quantize_writes_of_a_pulled_model_is_found_by_its_name(tiny: Path, name: str) -> None:
    snapshot = Path(f"models--{read_catalog()[name].repository.replace('/', '--')}", "snapshots", "0" * 40)
    path = put(tiny, output_path(snapshot, "Q4_K_M", None, several=False))
    assert resolve_model(name).resolve() == path
    assert resolve_model(f"{name}:q4_k_m").resolve() == path


def test_every_recipe_is_read_from_a_file_name() -> None:
    for recipe in RECIPES:
        match = FILE_NAME.fullmatch(f"Some-Model-7B-{recipe}")
        assert match is not None
        assert match.group("name", "recipe") == ("Some-Model-7B", recipe)


def test_a_receipt_or_a_remembered_folder_finds_what_was_renamed_or_written_elsewhere(
    tiny: Path, tmp_path: Path
) -> None:
    path = put(tiny, tmp_path / "far" / "mine.gguf", source="m42-health/Llama3-Med42-8B")
    assert "not on this machine" in str(failure(NAME))
    remember_folders([path])
    assert resolve_model(NAME) == path
    assert [artifact.path for artifact in artifacts_of(read_catalog()[NAME])] == [path]
    shutil.rmtree(path.parent)
    assert remembered_folders() == []
    FOLDERS.path.write_text("{")
    assert remembered_folders() == []


def test_several_artifacts_are_listed_and_a_recipe_chooses(tiny: Path, tmp_path: Path) -> None:
    four = put(tiny, Path("Llama3-Med42-8B-Q4_K_M.gguf"))
    eight = put(tiny, Path("Llama3-Med42-8B-Q8_0.gguf"))
    refused = failure("med42-8b")
    assert refused.hint == f"one of {NAME}:Q4_K_M, {NAME}:Q8_0"
    assert resolve_model("med42-8b:Q8_0").resolve() == eight
    assert resolve_model(f"{NAME}:q4_k_m").resolve() == four
    assert failure(f"{NAME}:Q2_K").hint == f"medlite quantize {NAME} --recipe Q2_K"
    remember_folders([put(tiny, tmp_path / "far" / "Llama3-Med42-8B-Q8_0.gguf")])
    assert str(tmp_path / "far") in str(failure(f"{NAME}:Q8_0").hint)


def test_files_that_were_pulled_are_found_in_the_hub_cache(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub/models--qvac--MedPsy-4B-GGUF/snapshots/abc"
    put(tiny, folder / "MedPsy-4B-Q4_K_M.gguf")
    put(tiny, folder / "MedPsy-4B-Q8_0-00001-of-00002.gguf")
    put(tiny, folder / "MedPsy-4B-Q8_0-00002-of-00002.gguf")
    assert resolve_model("medpsy-4b:Q4_K_M").name == "MedPsy-4B-Q4_K_M.gguf"
    assert resolve_model("qvac/MedPsy-4B-GGUF:Q8_0").name == "MedPsy-4B-Q8_0-00001-of-00002.gguf"
    assert "medlite pull some/other" in str(failure("some/other").hint)


def test_a_checkpoint_that_is_here_needs_only_quantizing(tmp_path: Path) -> None:
    folder = tmp_path / "hub/models--m42-health--Llama3-Med42-8B/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert "not on this machine" in str(failure(NAME))
    (folder / "model-00001-of-00004.safetensors").write_text("weights")
    refused = failure(NAME)
    assert "its checkpoint is here" in str(refused)
    assert refused.hint == f"medlite quantize {NAME} --recipe Q4_K_M"


def test_a_name_that_several_models_share_lists_them() -> None:
    assert failure("med42-70b").hint == "one of med42-70b-v1, llama3-med42-70b"
    assert find_model("med42-8b") is read_catalog()[NAME]
    assert "did you mean llama3-med42-8b" in str(failure("llama3-med42-8").hint)


def test_a_model_is_recognised_by_what_files_call_it() -> None:
    for model in read_catalog().values():
        assert recognise(model.name.replace("-", " ").title()) is model
        if model.repository:
            assert recognise(model.repository) is model
            assert recognise(f"https://huggingface.co/{model.repository}") is model
            assert recognise(model.repository.split("/")[1]) is model
    assert recognise("") is None
    assert recognise("Llama") is None


def test_models_tells_what_is_ready_to_run(tiny: Path) -> None:
    put(tiny, Path("Llama3-Med42-8B-Q4_K_M.gguf"))
    rows = json.loads(CliRunner().invoke(models, ["--json"], catch_exceptions=False).stdout)
    ready = {row["name"]: [one["recipe"] for one in row["artifacts"]] for row in rows if row["artifacts"]}
    assert ready == {NAME: ["Q4_K_M"]}
    assert "Q4_K_M.gguf" in CliRunner().invoke(models, [NAME], catch_exceptions=False).stdout
    table = CliRunner().invoke(models, ["med42"], catch_exceptions=False).stdout
    assert [line.split()[-1] for line in table.splitlines() if line.strip().startswith(NAME)] == ["Q4_K_M"]
    answer = CliRunner().invoke(fit, [f"{NAME}:Q4_K_M", "--json"], catch_exceptions=False)
    assert [row["recipe"] for row in json.loads(answer.stdout)["recipes"]] == ["F32"]


def test_load_and_the_commands_take_a_catalogue_name(tiny: Path) -> None:
    put(tiny, Path("Llama3-Med42-8B-Q4_K_M.gguf"))
    with medlite.load(NAME, medlite.OpenSettings("cpu", n_threads=1)) as model:
        assert model.artifact.path.name == "Llama3-Med42-8B-Q4_K_M.gguf"
