import pytest

from optpipe.errors import ModelError
from optpipe.sources import resolve
from optpipe.testing.tiny import save_tiny


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """Stands for the hub: one model, in a folder named by its revision."""
    folder = save_tiny("llama", tmp_path / "0123abcd")
    calls = []

    def download(repository, **options):
        calls.append((repository, options))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


def test_a_hub_id_is_fetched_and_opened(snapshot):
    source = resolve("owner/name@v1")
    ((repository, options),) = snapshot
    assert (repository, options["revision"]) == ("owner/name", "v1")
    assert source.identity["kind"] == "hub"
    assert source.identity["revision"] == "0123abcd"
    assert source.description.startswith("owner/name@v1 (llama")


def test_pickles_and_code_are_not_even_fetched(snapshot):
    resolve("owner/name")
    wanted = snapshot[0][1]["allow_patterns"]
    assert "*.safetensors" in wanted
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in wanted)


def test_code_is_fetched_when_it_is_trusted(snapshot):
    resolve("owner/name", trust_remote_code=True)
    assert "*.py" in snapshot[0][1]["allow_patterns"]


def failing(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    failing(monkeypatch, LocalEntryNotFoundError("no"))
    with pytest.raises(ModelError, match="the hub cannot be reached") as caught:
        resolve("owner/name")
    assert "give its folder" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "accepted its terms"),
        ("RepositoryNotFoundError", "no such model"),
        ("RevisionNotFoundError", "no revision 'v1'"),
    ],
)
def test_what_the_hub_refuses_is_told_apart(monkeypatch, kind, message):
    from huggingface_hub import errors

    failing(monkeypatch, (error := getattr(errors, kind)).__new__(error))
    with pytest.raises(ModelError, match=message):
        resolve("owner/name@v1")
