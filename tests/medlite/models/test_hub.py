"""Downloads against a hub on this machine, through huggingface_hub itself: whole, resumed, refused, offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE

from medlite.errors import CheckpointError
from medlite.models.catalog import read_catalog
from medlite.models.hub import find_checkpoint, hand_folder, parse_repository
from tests.helpers.fake_hub import COMMIT, FakeHub, serve

WEIGHTS = bytes(range(256)) * 4096
# fmt: off
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"card",
         "pytorch_model.bin": b"pickle", "vision.png": b"png"}
# fmt: on


def medlite(tmp_path: Path, hub: FakeHub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, since huggingface_hub reads its environment when it is imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "MEDLITE_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "medlite", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**inherited, **own, **environment},
    )


def test_pull_brings_the_checkpoint_at_a_pinned_commit_and_nothing_else(tmp_path: Path) -> None:
    with serve(FakeHub(FILES)) as hub:
        first = medlite(tmp_path, hub, "pull", "org/model", "--json")
        assert first.returncode == 0, first.stderr
        answer = json.loads(first.stdout)
        folder = Path(answer["path"])
        assert answer["revision"] == COMMIT
        assert {path.name for path in folder.iterdir()} == set(FILES) - {"pytorch_model.bin", "vision.png"}
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert [name for name, _ in hub.downloads()][-1] == "model.safetensors"  # the largest last
        hub.requests.clear()
        again = medlite(tmp_path, hub, "pull", "org/model", "--json")
        assert json.loads(again.stdout) == {**answer, "n_downloaded_bytes": 0}
        assert hub.downloads() == []


def test_a_short_disk_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    with serve(FakeHub(FILES, announced={"model.safetensors": 1 << 60})) as hub:
        refused = medlite(tmp_path, hub, "pull", "org/model")
        assert refused.returncode == 1
        assert "are to be downloaded" in refused.stderr
        assert "HF_HOME" in refused.stderr
        assert hub.downloads() == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    large = WEIGHTS * 24
    with serve(FakeHub({**FILES, "model.safetensors": large}, n_cuts=1)) as hub:
        done = medlite(tmp_path, hub, "pull", "org/model", "--json")
        assert done.returncode == 0, done.stderr
        ranges = [sent for name, sent in hub.downloads() if name == "model.safetensors"]
        assert ranges == ["", f"bytes={DOWNLOAD_CHUNK_SIZE}-"]  # whole pieces are kept, the broken one is not
        assert (Path(json.loads(done.stdout)["path"]) / "model.safetensors").read_bytes() == large


def test_whole_files_are_kept_when_a_run_is_given_up(tmp_path: Path) -> None:
    with serve(FakeHub(FILES, damaged="model.safetensors")) as hub:
        assert medlite(tmp_path, hub, "pull", "org/model").returncode == 1
        hub.damaged = ""
        hub.requests.clear()
        assert medlite(tmp_path, hub, "pull", "org/model").returncode == 0
        assert [name for name, _ in hub.downloads()] == ["model.safetensors"]


def test_other_bytes_than_the_hub_announced_are_removed_and_refused(tmp_path: Path) -> None:
    with serve(FakeHub(FILES, damaged="model.safetensors")) as hub:
        refused = medlite(tmp_path, hub, "pull", "org/model")
        assert refused.returncode == 1
        assert "model.safetensors arrived damaged: its checksum is not the hub's" in refused.stderr
        assert not list((tmp_path / "hf").rglob("model.safetensors"))


def test_a_download_before_a_conversion_is_compared_with_the_hub_s_checksums(tmp_path: Path) -> None:
    """The receipt takes a shard's SHA-256 from the cache, which names the file as the hub announced it."""
    with serve(FakeHub(FILES, damaged="model.safetensors")) as hub:
        refused = medlite(tmp_path, hub, "quantize", "org/model")
        assert refused.returncode == 1
        assert "model.safetensors arrived damaged: its checksum is not the hub's" in refused.stderr
        assert not list((tmp_path / "hf").rglob("model.safetensors"))
    with serve(FakeHub({"vision.png": b"png"})) as hub:
        assert "org/model: holds no file of a checkpoint" in medlite(tmp_path, hub, "quantize", "org/model").stderr


def test_a_gated_model_says_which_page_to_accept(tmp_path: Path) -> None:
    with serve(FakeHub(FILES, gated=True, repository="meta-llama/Llama-3.2-1B-Instruct")) as hub:
        refused = medlite(tmp_path, hub, "pull", "llama3.2-1b-instruct")
        assert refused.returncode == 1
        assert "its licence must be accepted first" in refused.stderr
        assert "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct, then: hf auth login" in refused.stderr


def test_offline_opens_no_connection(tmp_path: Path) -> None:
    with serve(FakeHub(FILES)) as hub:
        for arguments, environment in (
            (["pull", "org/model", "--offline"], {}),
            (["pull", "org/model"], {"HF_HUB_OFFLINE": "1"}),
            (["quantize", "org/model", "--offline"], {}),
            (["fit", "org/model"], {}),
            (["models", "--json"], {}),
        ):
            answer = medlite(tmp_path, hub, *arguments, **environment)
            assert answer.returncode == (0 if arguments[0] == "models" else 1), answer.stderr
            assert "Traceback" not in answer.stderr
        assert hub.requests == []
        assert medlite(tmp_path, hub, "pull", "org/model").returncode == 0
        hub.requests.clear()
        assert medlite(tmp_path, hub, "pull", "org/model", "--offline").returncode == 0
        assert hub.requests == []


def test_one_of_several_gguf_files_is_chosen_by_its_recipe(tmp_path: Path) -> None:
    ready = {"model-Q4_K_M.gguf": b"four", "model-Q8_0.gguf": b"eight"}
    with serve(FakeHub(ready)) as hub:
        undecided = medlite(tmp_path, hub, "pull", "org/model")
        assert "model-Q4_K_M.gguf (4 B)" in undecided.stderr
        plan = medlite(tmp_path, hub, "pull", "org/model", "--recipe", "q8_0", "--dry-run", "--json")
        assert [row["name"] for row in json.loads(plan.stdout)["files"]] == ["model-Q8_0.gguf"]
        chosen = medlite(tmp_path, hub, "pull", "org/model", "--recipe", "Q4_K_M", "--json")
        assert Path(json.loads(chosen.stdout)["path"]).read_bytes() == b"four"
        both = medlite(tmp_path, hub, "pull", "org/model", "--recipe", "Q8_0", "--recipe", "Q4_K_M", "--json")
        paths = json.loads(both.stdout)["paths"]
        assert [Path(path).read_bytes() for path in paths] == [b"eight", b"four"]


def test_pickled_weights_come_only_where_there_are_no_others(tmp_path: Path) -> None:
    with serve(FakeHub({"config.json": b"{}", "pytorch_model.bin": b"pickle", "training_args.bin": b"pickle"})) as hub:
        plan = medlite(tmp_path, hub, "pull", "org/model", "--dry-run", "--json")
        assert {row["name"] for row in json.loads(plan.stdout)["files"]} == {"config.json", "pytorch_model.bin"}
        pulled = medlite(tmp_path, hub, "pull", "org/model")
        assert "pip install 'medlite[torch]'" in pulled.stdout
        assert {name for name, _ in hub.downloads()} == {"config.json", "pytorch_model.bin"}
    with serve(FakeHub({"config.json": b"{}", "consolidated.00.pth": b"pickle"})) as hub:
        refused = medlite(tmp_path, hub, "pull", "org/model", HF_HOME=str(tmp_path / "other"))
        assert "pickled weights of an unknown layout only" in refused.stderr
        assert hub.downloads() == []


def test_a_config_alone_is_enough_for_fit(tmp_path: Path) -> None:
    config = json.dumps(
        {
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": 2,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 512,
            "vocab_size": 1000,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        }
    ).encode()
    with serve(FakeHub({**FILES, "config.json": config})) as hub:
        missing = medlite(tmp_path, hub, "fit", "org/model")
        assert "medlite pull org/model --config brings it" in missing.stderr
        assert hub.requests == []
        pulled = medlite(tmp_path, hub, "pull", "org/model", "--config")
        assert pulled.returncode == 0, pulled.stderr
        assert "next: medlite fit org/model" in pulled.stdout
        assert [name for name, _ in hub.downloads()] == ["config.json"]
    assert json.loads(medlite(tmp_path, hub, "fit", "org/model", "--memory", "1GB", "--json").stdout)["recipes"]


def test_what_is_not_on_the_hub_is_said(tmp_path: Path) -> None:
    with serve(FakeHub(FILES)) as hub:
        assert "not on the hub, or private" in medlite(tmp_path, hub, "pull", "nobody/nothing").stderr
    gone = medlite(tmp_path, hub, "pull", "org/model")
    assert gone.returncode == 1
    assert "Traceback" not in gone.stderr


def test_a_credentialed_model_is_fetched_by_hand_and_then_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="must be fetched by hand") as refused:
        find_checkpoint("me-llama-13b-chat")
    folder = hand_folder(read_catalog()["me-llama-13b-chat"])
    assert "https://physionet.org/content/me-llama" in str(refused.value.hint)
    assert str(folder) in str(refused.value.hint)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert find_checkpoint("me-llama-13b-chat") == folder


def test_names_of_the_catalogue_and_revisions_are_understood() -> None:
    assert parse_repository("llama3-med42-8b") == ("m42-health/Llama3-Med42-8B", None)
    assert parse_repository("org/model@refs/pr/1") == ("org/model", "refs/pr/1")
    for wrong in ("./nowhere", "model.gguf", "a/b/c", "~/x"):
        with pytest.raises(CheckpointError):
            parse_repository(wrong)
    with pytest.raises(CheckpointError) as near:
        parse_repository("llama3-med42-8")
    assert "llama3-med42-8b" in str(near.value.hint)


def test_the_name_of_a_revision_is_enough_offline(tmp_path: Path) -> None:
    """The cache learns which commit a name means, also where every file was here already under the commit."""
    with serve(FakeHub(FILES)) as hub:
        assert medlite(tmp_path, hub, "pull", f"org/model@{COMMIT}").returncode == 0
        assert medlite(tmp_path, hub, "pull", "org/model@refs/pr/1", "--offline").returncode == 1
        hub.requests.clear()
        assert medlite(tmp_path, hub, "pull", "org/model@refs/pr/1").returncode == 0
        assert hub.downloads() == []
        hub.requests.clear()
        found = medlite(tmp_path, hub, "pull", "org/model@refs/pr/1", "--offline", "--json")
        assert Path(json.loads(found.stdout)["path"]).name == COMMIT
        assert hub.requests == []
