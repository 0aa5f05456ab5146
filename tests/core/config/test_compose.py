"""Configuration: what composes, and how a mistake is explained before anything is submitted."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.config.search_path import available
from autoexp.errors import BadInput
from autoexp.storage.places import SHIPPED

# A user's own experiment: every group comes from what ships with autoexp.
OWN = """\
defaults: [{project: demo}, {backend: demo}, {slurm: local}, {monitoring: basic}, _self_]
project: {name: own}
"""


def refusal(config: str | None, *overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        compose(config, overrides)
    return str(refused.value)


def written(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    written(folder / "own.yaml", OWN)
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(folder))
    return folder


# What composes


def test_the_demo_composes_with_its_two_cooldowns() -> None:
    composed = compose("demo")
    assert composed.config == "demo"
    assert composed.experiment.backend.kind == "demo"
    assert composed.experiment.backend.args.train_iters == 2000
    assert [cooldown.at for cooldown in composed.experiment.cooldowns] == [(1000, 1600)]


def test_without_a_name_the_parts_are_chosen_by_overrides() -> None:
    line = "project=demo backend=demo slurm=local monitoring=demo backend.args.train_iters=200"
    composed = compose(None, line.split())
    assert composed.config == "default"
    assert composed.experiment.backend.args.train_iters == 200
    assert composed.experiment.monitoring.file_tick_s == 0.5


def test_a_plain_override_sets_a_key_that_no_yaml_file_mentions() -> None:
    assert "weight_decay" not in (SHIPPED / "backend" / "demo.yaml").read_text()
    composed = compose("demo", ["backend.args.weight_decay=0.25"])
    assert composed.experiment.backend.args.weight_decay == 0.25


def test_a_group_is_chosen_with_or_without_a_plus_whether_the_file_names_it_or_not(
    tmp_path: Path,
) -> None:
    image = ["container.image=/i.sif", "container.gpus=none"]
    own = tmp_path / "own.yaml"
    groups = "{project: demo}, {backend: demo}, {slurm: local}, {monitoring: demo}"
    own.write_text(f"defaults: [{groups}, _self_]\ncooldowns: []\n")
    for config in ("study", str(own)):
        for choice in ("container=apptainer", "+container=apptainer"):
            assert compose(config, [choice, *image]).experiment.container.kind == "apptainer"


def test_every_shipped_configuration_takes_a_container() -> None:
    files = [path for path in SHIPPED.glob("*.yaml") if "defaults:" in path.read_text()]
    assert files
    assert [path.name for path in files if "- container: none" not in path.read_text()] == []


def test_the_last_of_two_overrides_counts() -> None:
    composed = compose("demo", ["backend.args.seed=1", "backend.args.seed=2"])
    assert composed.experiment.backend.args.seed == 2
    assert composed.overrides == ("backend.args.seed=1", "backend.args.seed=2")


def test_a_yaml_file_is_named_by_its_path(tmp_path: Path) -> None:
    path = written(tmp_path / "some where, x=y" / "mine.yaml", OWN)
    assert compose(path).experiment.project.name == "own"


def test_a_file_that_ends_in_yml_is_as_good(tmp_path: Path) -> None:
    assert compose(written(tmp_path / "mine.yml", OWN)).experiment.project.name == "own"


@pytest.mark.parametrize("root", ["/plain/output", "/a b/it's", "/data/${project.name}"])
def test_the_resolved_file_of_a_session_composes_to_the_same_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setenv("AUTOEXP_TEST_ROOT", root)
    first = compose("demo", ["project.output_root=${oc.env:AUTOEXP_TEST_ROOT}"])
    again = compose(written(tmp_path / "resolved.yaml", first.resolved))
    assert again.experiment == first.experiment


# The user's own directories


def test_own_configurations_fall_back_on_shipped_groups(own_configs: Path) -> None:
    written(own_configs / "backend" / "mine.yaml", "kind: demo\nargs: {train_iters: 7}\n")
    assert compose("own").experiment.backend.args.train_iters == 2000
    assert compose("own", ["backend=mine"]).experiment.backend.args.train_iters == 7


def test_own_groups_serve_a_shipped_experiment(own_configs: Path) -> None:
    written(own_configs / "backend" / "mine.yaml", "kind: demo\nargs: {train_iters: 7}\n")
    assert compose("demo", ["backend=mine"]).experiment.backend.args.train_iters == 7


def test_an_own_experiment_hides_the_shipped_one_of_that_name(own_configs: Path) -> None:
    written(own_configs / "demo.yaml", OWN)
    assert compose("demo").experiment.project.name == "own"
    assert available()["demo"] == own_configs / "demo.yaml"


def test_configs_in_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "configs" / "here.yaml", OWN)
    monkeypatch.chdir(tmp_path)
    assert compose("here").experiment.slurm.kind == "local"


@pytest.mark.parametrize("name", ["a b, c=d", "[x] 50% ö", "it's"])
def test_the_name_of_the_own_directory_may_hold_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    written(tmp_path / name / "backend" / "mine.yaml", "kind: demo\nargs: {train_iters: 7}\n")
    path = written(tmp_path / "elsewhere" / "run.yaml", OWN)
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(tmp_path / name))
    assert compose(path, ["backend=mine"]).experiment.backend.args.train_iters == 7


def test_a_directory_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOEXP_CONFIGS", "/no/such/folder")
    assert "AUTOEXP_CONFIGS names /no/such/folder" in refusal("demo")


# Values are data


@pytest.mark.parametrize(
    "text", ["/plain", "${oc.env:HOME}/${project.name}", "/a b'c\"d\ne,f|touch x"]
)
def test_what_an_environment_variable_holds_is_resolved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("AUTOEXP_TEST_ROOT", text)
    lines = "project: {name: own, output_root: '${oc.env:AUTOEXP_TEST_ROOT}'}\n"
    composed = compose(written(tmp_path / "env.yaml", OWN.splitlines()[0] + "\n" + lines))
    assert composed.experiment.project.output_root == text
    assert "${oc.env:AUTOEXP_TEST_ROOT}" in composed.unresolved


def test_an_unset_environment_variable_is_named(tmp_path: Path) -> None:
    lines = "monitoring: {file_tick_s: '${oc.env:NO_SUCH}'}\n"
    path = written(tmp_path / "env.yaml", OWN + lines)
    said = refusal(path)
    assert said.startswith("monitoring.file_tick_s: the environment variable NO_SUCH is not set; ")
    assert "give `monitoring.file_tick_s=...`" in said


def test_a_value_that_was_left_to_be_filled_in_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "todo.yaml", OWN.replace("own}", "own, output_root: '???'}"))
    message = refusal(path)
    assert "output_root" in message
    assert path in message


# Mistakes, with the path to the key, the nearest name and where the value came from


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("backend.args.train_itres=5", "backend.args.train_itres: no such key; did you mean "
         "`train_iters`? (override `backend.args.train_itres=5`)"),
        ("bakend=demo", "bakend: no such key; did you mean `backend`?"),
        ("cooldowns.0.dcay=1", "cooldowns.0.dcay: no such key; did you mean `decay`?"),
        ("zzz=1", "zzz: no such key (override `zzz=1`)"),
        ("slurm=null", "`slurm` takes the name of a file of that group"),
        ("sweep=3", "`sweep` takes the name of a file of that group"),
        ("project.name=ö", "override `project.name=ö` cannot be read: brackets have to match"),
        ("backend.args.train_iters=many", "backend.args.train_iters: 'many' is not an amount"),
        ("backend.args.train_iters=2.5", "backend.args.train_iters: Input should be a valid int"),
        ("backend.args.train_iters=0", "greater than 0, got 0 (override"),
        ("backend.args=3", "backend.args: Input should be a valid dictionary"),
        ("slurm.kind=slrm", "slurm: Input tag 'slrm' found using 'kind'"),
        ("project.name=a/b", "project.name: String should match pattern"),
        ('project.name="a\\nb"', "project.name: String should match pattern"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_explained(override: str, expected: str) -> None:
    assert expected in refusal("demo", override)


def test_all_mistakes_are_named_at_once() -> None:
    lines = refusal("demo", "backend.args.lrr=1", "slurm.knd=2").splitlines()
    assert [line.split(":")[0] for line in lines] == ["backend.args.lrr", "slurm.knd"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("backend: {args: {sede: 1}}\n", "backend.args.sede: no such key; did you mean `seed`?"),
        ("cooldowns: [{at: [200], decay: {iterations: 5}}, {att: [1]}]\n",
         "cooldowns.1.att: no such key; did you mean `at`?"),
        ("cooldowns: [{at: [200], decay: {iterations: 5, shpe: linear}}]\n",
         "cooldowns.0.decay.shpe: no such key; did you mean `shape`?"),
        ("cooldowns: [{at: [200], every: 100, decay: {iterations: 5}}]\n",
         "cooldowns.0: give exactly one of `at`, `every` and `budgets`"),
        ("cooldowns: [{at: [200]}]\n",
         "exactly one of `decay.iterations`, `decay.tokens` and `decay.fraction`"),
        ("cooldowns: [{budgets: {totals: [900]}, decay: {iterations: 5}}]\n",
         "`budgets` gives the decay's length"),
    ],
)  # fmt: skip
def test_a_wrong_key_in_a_file_is_explained_with_the_file(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = written(tmp_path / "wrong.yaml", OWN + text)
    message = refusal(path)
    assert expected in message
    assert path in message


@pytest.mark.parametrize("chosen_by", ["override", "defaults"])
def test_a_wrong_key_in_a_group_is_explained_with_the_files_path(
    own_configs: Path, chosen_by: str
) -> None:
    path = written(own_configs / "backend" / "mine.yaml", "kind: demo\nargs: {save_intervl: 3}\n")
    if chosen_by == "override":
        message = refusal("own", "backend=mine")
    else:
        written(own_configs / "own.yaml", OWN.replace("backend: demo", "backend: mine"))
        message = refusal("own")
    assert "backend.args.save_intervl: no such key; did you mean `save_interval`?" in message
    assert path in message


def test_an_unknown_choice_of_a_group_names_the_choices(own_configs: Path) -> None:
    written(own_configs / "backend" / "mine.yaml", "kind: demo\n")
    message = refusal("own", "backend=dmeo")
    assert "no file configs/backend/dmeo.yaml; did you mean `demo`?" in message
    assert "demo" in message.split("there are:")[1]
    assert "mine" in message.split("there are:")[1]


def test_an_unknown_configuration_suggests_the_nearest_and_names_all(own_configs: Path) -> None:
    message = refusal("dmeo")
    assert message.startswith("dmeo: no such configuration; did you mean `demo`?")
    everything = "annealing, default, demo, drill, finetune, huggingface, ladder, own, study"
    assert message.endswith(everything)


def test_a_path_to_nothing_is_refused() -> None:
    assert "nowhere/mine.yaml: no such file" in refusal("nowhere/mine.yaml")


@pytest.mark.parametrize("override", ["backend.args", "a=[1", "=x", "~nope"])
def test_an_override_that_does_not_parse_is_quoted(override: str) -> None:
    message = refusal("demo", override)
    assert override.lstrip("~") in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "content",
    [b"a: [1\nb: }\n", b"project: {name: \xff}\n", b"a: 1\na: 2\n", b"- 1\n", b"just text\n"],
    ids=["syntax", "encoding", "duplicate key", "list", "text"],
)
def test_a_file_that_is_no_yaml_mapping_is_bad_input_with_its_path(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert str(path) in refusal(str(path))
