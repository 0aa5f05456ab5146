"""What looks like a secret is refused in a configuration, and left out of what is recorded."""

import pytest

from autoexp import redaction
from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.session.provenance import stored_environment


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ada:hunter2@db.example.org/runs",
        "see https://:t0ken@git.example.org/x.git",
        "https://example.org/data?access_token=abc&x=1",
        "python train.py --hub-token hf_abc",
        "python train.py --api-key=abc --lr 3e-4",
        "WANDB_API_KEY=abc python train.py",
        "env X=1 DB_PASSWORD='a b' run",
        "SLURM_JWT=abc srun",
        "eyJhbGciOiJIUzI1NiJ9.abc",
        f"by hf_{'abc' * 12} alone",
        f"ghp_{'abc' * 12}",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nabc",
    ],
)
def test_a_secret_in_a_value_is_found(text: str) -> None:
    found = redaction.found_in(text)
    assert found is not None
    for secret in ("hunter2", "t0ken", "abc", "a b"):
        assert secret not in found


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@github.com/x/y.git",
        "https://example.org:8080/a@b",
        "https://example.org/data?max_tokens=100",
        "python train.py --max-tokens 4096 --tokenizer-type HFTokenizer",
        "python train.py --hub-token $HF_TOKEN",
        'python train.py --hub-token "${HF_TOKEN}"',
        "--use-token --lr 3e-4",
        "WANDB_API_KEY=$MY_KEY python train.py",
        "tokens: 1e9, keys=values",
        "hf_model_of_a_long_name_with_words key.json eyJ.x",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert redaction.found_in(text) is None
    assert redaction.found_in_words(text.split()) is None


@pytest.mark.parametrize("name", ["SLURM_JWT", "HF_TOKEN"])
def test_the_value_of_a_secret_variable_is_found_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "hunter2hunter2")
    assert f"${name}" in str(redaction.found_in("about hunter2hunter2"))
    assert "hunter2" not in redaction.without_secrets("about hunter2hunter2")


def test_a_token_by_its_shape_is_left_out_of_what_is_recorded() -> None:
    assert redaction.without_secrets("a eyJhbGciOiJIUzI1NiJ9.abc.d b") == "a [left out] b"


@pytest.mark.parametrize(
    "piece",
    ["9", "KEY", "a.", "a:", "-a", "eyJ", "eyJ-", "a://b:", "?a", "-----BEGIN ", " -a ", "A="],
)
def test_a_line_of_any_length_is_read_once(piece: str) -> None:
    text = piece * (300_000 // len(piece))  # hours, for a pattern that reads it once for each place
    assert len(redaction.without_secrets(text)) >= 8
    assert "$" not in str(redaction.found_in(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pip install -fhttps://u:pw@host/x", "pip install -fhttps://u:[left out]@host/x"),
        ("+    \"my_api_key.x\" : 'abc'", '+    "my_api_key.x" : [left out]'),
        ("lr=1 HF_TOKEN=abc", "lr=1 HF_TOKEN=[left out]"),
        ("key: abc", "key: [left out]"),
        ("key:", "key:"),
    ],
)
def test_what_is_assigned_to_a_secret_name_is_left_out(text: str, shown: str) -> None:
    assert redaction.without_secrets(text) == shown


def test_an_options_value_is_the_word_behind_it() -> None:
    assert redaction.found_in_words(["train", "--hub-token", "hf_abc"]) is not None
    assert redaction.found_in_words(["train", "--hub-token", "{job.name}", "x"]) is None


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("project.output_root=s3://ada:hunter2@host/x", "project.output_root"),
        ('slurm.setup=["export HF_TOKEN=hunter2"]', "slurm.setup.0"),
    ],
)
def test_a_configuration_with_a_secret_is_refused_by_its_key_and_without_its_value(
    override: str, where: str
) -> None:
    with pytest.raises(BadInput) as refused:
        compose("demo", [override])
    assert where in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_message_about_overrides_keeps_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-s3cr3t")
    wrong = ["nowhere/at=all", "project.name=s3cr3t-s3cr3t", "x.url=http://ada:hunter2@h/"]
    with pytest.raises(BadInput) as refused:
        compose("no-such-config", wrong)
    assert "s3cr3t-s3cr3t" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_recorded_variables_keep_no_passwords_of_urls() -> None:
    kept = stored_environment([("AUTOEXP_MIRROR", "http://ada:hunter2@mirror.example.org/")])
    assert kept == {"AUTOEXP_MIRROR": "http://ada:[left out]@mirror.example.org/"}
